"""How many small faults in core code the tests notice: mutation testing on a drawn sample.

    python benchmarks/mutants.py    # `make mutants`: every module, six faults each, at most 30 minutes
    python benchmarks/mutants.py --only gates --each 20

Cosmic Ray (MIT) makes the faults: another operator, another number, a negated condition, a loop that never
runs, another exception. Each is put into a copy of the checkout, and the tests named here for its module run
there until one fails. Prints a row for each module and the faults that no test noticed. Faults are drawn by
`--seed`, so that a run can be repeated and another seed looks elsewhere; what has not begun after `--minutes`
is left out, and counted as such. Faults that change no result (how
much is read at once, a comparison of numbers that are never equal) do not count where
`benchmarks/mutants_without_effect.yaml` lists them with the reason.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import yaml
from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkResult

PROJECT = Path(__file__).resolve().parent.parent
TARGETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "bands": ("datasets/core/bands.py", ("datasets/core/test_bands.py", "datasets/readers/test_geotiff.py")),
    "radiometry": (
        "datasets/core/radiometry.py",
        ("datasets/core/test_radiometry.py", "datasets/readers/test_eurosat.py"),
    ),
    "resample": (
        "datasets/scenes/resample.py",
        ("datasets/scenes/test_resample.py", "datasets/scenes/test_golden.py"),
    ),
    "grid": (
        "bento/inference/window_grid.py",
        ("bento/inference/test_window_grid.py", "bento/inference/test_windows.py"),
    ),
    "windows": ("bento/inference/windows.py", ("bento/inference/test_windows.py",)),
    "blending": (
        "bento/inference/blending.py",
        ("bento/inference/test_blending.py", "bento/inference/test_windows.py"),
    ),
    "batcher": (
        "bento/serving/batcher.py",
        ("bento/serving/test_batcher.py", "bento/serving/test_batcher_states.py"),
    ),
    "admission": ("bento/serving/admission.py", ("bento/serving/test_admission.py",)),
    "manifest": ("bento/batch/manifest.py", ("bento/batch/test_manifest.py", "bento/batch/test_run.py")),
    "leases": (
        "bento/stream/leases.py",
        ("bento/stream/test_leases.py", "bento/stream/test_lease_states.py", "bento/stream/test_consumer.py"),
    ),
    "calibration": (
        "models/network/calibration.py",
        (
            "models/network/test_calibration.py",
            "models/network/test_conformal.py",
            "models/network/test_conformal_methods.py",
            "training/evaluate/test_oracles.py",
        ),
    ),
    "sets": (
        "models/model_file.py",
        (
            "models/test_prediction_sets.py",
            "models/test_model_parts.py",
            "models/test_find_model.py",
            "models/test_model_file.py",
            "bento/inference/test_precision.py",
        ),
    ),
    "gates": (
        "training/registry/gates.py",
        ("training/registry/test_gate_figures.py", "training/registry/test_gates.py"),
    ),
    "registry": ("training/registry/registry.py", ("training/registry/test_registry.py",)),
    "quantise": (
        "models/export/quantise.py",
        ("models/export/test_quantise_graphs.py", "models/export/test_quantise.py"),
    ),
    "guard": ("training/evaluate/quantisation.py", ("training/evaluate/test_quantisation.py",)),
}
# `int | None` in signatures; decorators; nothing at all; `is` for `==`, the same for small numbers.
IGNORED = ("BitOr", "RemoveDecorator", "NoOp", "_Is")
WITHOUT_EFFECT = PROJECT / "benchmarks" / "mutants_without_effect.yaml"
UNSEEN = "@dataclass("  # lines without a result: whether a class is frozen or has slots
SLOWER = 4  # times as long as without a fault, after which a run counts as noticed


@dataclass(frozen=True)
class Trial:
    """A fault, the tests that should notice it, and the seconds that they may take."""

    name: str
    fault: MutationSpec
    command: str
    timeout: float


@dataclass(frozen=True)
class Verdict:
    """What became of a fault, and its diff.

    `noticed`, `missed`, `listed` where it changes no result, `none` where the code cannot have it, `left out`
    where time was up.
    """

    name: str
    outcome: str
    diff: str


def find_faults(module: str) -> list[MutationSpec]:
    """Return every fault that Cosmic Ray can make in a module, but for those that are IGNORED."""
    with (
        tempfile.TemporaryDirectory() as folder,
        use_db(str(Path(folder, "faults.sqlite")), WorkDB.Mode.create) as database,
    ):
        init([Path(module)], database, {})
        faults = [fault for item in database.work_items for fault in item.mutations]
    lines = Path(module).read_text(encoding="utf-8").splitlines()
    return [
        fault
        for fault in faults
        if not any(word in fault.operator_name for word in IGNORED)
        and not lines[fault.start_pos[0] - 1].lstrip().startswith(UNSEEN)
    ]


def copy_checkout(target: Path) -> Path:
    """Copy what git knows of the checkout, changes included, to `target`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        check=True,
        capture_output=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        source = PROJECT / name
        if source.is_symlink() or source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)
    return target


def test_command(tests: Sequence[str]) -> str:
    """Return the command that runs these files of tests until one fails."""
    files = " ".join(f"tests/{name}" for name in tests)
    return f"{sys.executable} -m pytest -x -q -p no:cacheprovider -m 'not realdata' {files}"


def failure(command: str) -> str:
    """Return what tests print that fail twice, since a machine under load may fail one once; else nothing."""
    for _ in range(2):
        done = subprocess.run(command, shell=True, cwd=PROJECT, check=False, capture_output=True)  # noqa: S602
        if not done.returncode:
            return ""
    return done.stdout.decode()


def draw_trials(names: Sequence[str], each: int, seed: int) -> Iterator[Trial]:
    """Yield the drawn faults of each module, once its tests have passed without any.

    Raises:
        SystemExit: tests fail without a fault, or are not there.
    """
    for name in names:
        module, tests = TARGETS[name]
        command = test_command(tests)
        began = time.monotonic()
        if failed := failure(command):
            sys.exit(f"{name}: the tests fail without a fault:\n{failed[-2000:]}")
        timeout = 20 + SLOWER * (time.monotonic() - began)
        faults = find_faults(module)
        drawn = random.Random(f"{seed} {name}").sample(faults, min(each, len(faults)))  # noqa: S311
        for fault in drawn:
            yield Trial(name, fault, command, timeout)


def start_worker(root: str) -> None:
    """Give this process a copy of the checkout of its own, and work in it."""
    os.chdir(copy_checkout(Path(tempfile.mkdtemp(dir=root))))
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = str(Path.cwd())


def is_listed(module: str, diff: str) -> bool:
    """Return whether a fault is one of those that change no result."""
    old, new = ({line[1:].strip() for line in diff.splitlines() if line[:1] == sign} for sign in "-+")
    return any(
        entry["line"] in old and ("becomes" not in entry or new & set(entry["becomes"]))
        for entry in yaml.safe_load(WITHOUT_EFFECT.read_text(encoding="utf-8")).get(module, ())
    )


def judge(trial: Trial) -> Verdict:
    """Put a fault into this process's copy and run the tests."""
    result: WorkResult = mutate_and_test([trial.fault], trial.command, trial.timeout)
    outcomes = {TestOutcome.KILLED: "noticed", TestOutcome.SURVIVED: "missed"}
    outcome, diff = outcomes.get(result.test_outcome, "none"), result.diff or ""
    if outcome == "missed" and is_listed(TARGETS[trial.name][0], diff):
        outcome = "listed"
    return Verdict(trial.name, outcome, diff)


def judge_until(end: float, trial: Trial) -> Verdict:
    """Judge a fault, unless `end` has passed by this machine's clock."""
    return judge(trial) if time.monotonic() < end else Verdict(trial.name, "left out", "")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=sorted(TARGETS), help="Modules; all by default.")
    parser.add_argument("--each", type=int, default=6, help="Faults drawn for each module.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="Copies that are tested at once."
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="Begin no trial after so many.")
    parser.add_argument("--least", type=float, default=0.0, help="Fail if a smaller share is noticed (0-1).")
    return parser.parse_args()


def main() -> int:
    """Print the table and the faults that were missed; 1 if fewer than `--least` were noticed."""
    arguments = parse()
    names = arguments.only or list(TARGETS)
    os.chdir(PROJECT)
    began = time.monotonic()
    end = began + arguments.minutes * 60
    verdicts: list[Verdict] = []
    with (
        tempfile.TemporaryDirectory(prefix="mutants-") as root,
        ProcessPoolExecutor(arguments.jobs, initializer=start_worker, initargs=(root,)) as pool,
    ):
        drawn = draw_trials(names, arguments.each, arguments.seed)
        trials = [pool.submit(judge_until, end, trial) for trial in drawn]
        for number, done in enumerate(as_completed(trials), 1):
            verdicts.append(done.result())
            print(f"{number} of {len(trials)}: {verdicts[-1].name}: {verdicts[-1].outcome}", file=sys.stderr)
    status = report(names, verdicts, arguments)
    left = sum(verdict.outcome == "left out" for verdict in verdicts)
    print(f"\n{(time.monotonic() - began) / 60:.0f} minutes; {left} faults were left out for lack of time")
    return status


def report(names: Sequence[str], verdicts: Sequence[Verdict], arguments: argparse.Namespace) -> int:
    """Print the result as Markdown; return the exit status."""
    print(f"{time.strftime('%Y-%m-%d')}, seed {arguments.seed}\n")
    print("| module | faults | without effect | noticed |\n|---|---:|---:|---:|")
    for name in names:
        of = Counter(verdict.outcome for verdict in verdicts if verdict.name == name)
        print(f"| `{TARGETS[name][0]}` | {of['noticed'] + of['missed']} | {of['listed']} | {of['noticed']} |")
    of = Counter(verdict.outcome for verdict in verdicts)
    tried = of["noticed"] + of["missed"]
    share = of["noticed"] / max(tried, 1)
    print(f"| all | {tried} | {of['listed']} | {of['noticed']} ({share:.0%}) |")
    for verdict in verdicts:
        if verdict.outcome == "missed":
            print(f"\nmissed in {verdict.name}:\n{verdict.diff}")
    return int(share < arguments.least)


if __name__ == "__main__":
    sys.exit(main())
