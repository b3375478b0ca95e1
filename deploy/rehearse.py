"""Rehearse a model's whole life cycle on one machine: `deploy/rehearsal` runs this, docs/lifecycle.md
explains it.

All processes are real ones on the loopback interface: MLflow's server, the service, HAProxy before it,
    Prometheus and
Alertmanager with the shipped rules; git and DVC work in a clone of this project. Tiles are synthetic and
networks tiny, so that it takes minutes. Apart from that, only the limits of some gates, and how long an
alert's condition must hold, differ from a production site.
"""

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any

import click
import httpx
import yaml
from canary import Haproxy, balanced
from monitoring import (
    PROJECT,
    Monitoring,
    MonitoringError,
    free_ports,
    missing_programs,
    monitoring,
    running,
    service,
)
from stage import Client, Rehearsal, RehearsalError, git_identity

from tilewise.datasets.core.console import one_line_errors
from tilewise.models.model_file import usable_cores

STEPS = 11
LIMIT_MINUTES = 15
HOLD = "6s"  # how long an alert's condition must hold, where a site waits minutes
SCRAPE = "3s"  # a busy machine answers late
MARKS = "<!-- rehearsed -->\n", "<!-- end -->"
SELDOM_S, OFTEN_S = (
    2.0,
    0.15,
)  # between two requests: while models are trained, and where alerts need requests
DRIFT_GAIN = 0.55  # winter light: what is left of every reflectance
_NEEDED = {"git": "git", "haproxy": "haproxy"}

EXPERIMENT, GATES = "configs/experiments/rehearsal.yaml", "configs/gates-rehearsal.yaml"


@dataclass(frozen=True)
class Site:
    """The running processes.

    Attributes:
        champion, candidate, balancer, registry: URLs.
        route: the balancer's weights.
        watch: Prometheus and Alertmanager.
        client: sends tiles to the balancer.
    """

    champion: str
    candidate: str
    balancer: str
    registry: str
    route: Haproxy
    watch: Monitoring
    client: Client


def rehearse(rehearsal: Rehearsal) -> None:
    """Run all steps; raises RehearsalError where a check fails."""
    ports = free_ports(4)
    champion, candidate, balancer, registry = (f"http://127.0.0.1:{port}" for port in ports)
    rehearsal.settings |= _settings(rehearsal.folder, registry)
    with ExitStack() as stack:
        rehearsal.step("a project in git, a DVC remote, a registry")
        found_project(rehearsal)
        server = _mlflow(rehearsal, registry)
        stack.enter_context(
            running("registry", server, rehearsal.folder, f"{registry}/health", rehearsal.settings)
        )
        rehearsal.check(
            is_project(rehearsal), f"git repository, DVC remote in remote/, MLflow's server at {registry}"
        )
        first_data = first_model(rehearsal)
        site = stack.enter_context(open_site(rehearsal, champion, candidate, balancer, registry))
        refuse_a_bad_model(rehearsal, site)
        better_data_and_model(rehearsal)
        canary(rehearsal, site)
        drift(rehearsal, site)
        retrain(rehearsal, site)
        roll_back_a_canary(rehearsal, site)
        roll_back_the_champion(rehearsal, site, first_data)


def found_project(rehearsal: Rehearsal) -> None:
    """Clone this project at its last commit, and configure its pipeline for a few synthetic tiles."""
    shutil.rmtree(rehearsal.project, ignore_errors=True)
    rehearsal.project.mkdir()
    rehearsal.run("git", "clone", "--quiet", str(PROJECT), ".")
    rehearsal.run(
        "dvc", "remote", "add", "--force", "--default", "rehearsal", str(rehearsal.folder / "remote"), show=0
    )
    use_data(rehearsal, tiles=40)


def is_project(rehearsal: Rehearsal) -> bool:
    """Return whether the project is a clone of this one's last commit, with the rehearsal's DVC remote."""
    commits = {_git(folder, "rev-parse", "HEAD") for folder in (PROJECT, rehearsal.project)}
    remote = str(rehearsal.folder / "remote")
    return len(commits) == 1 and remote in (rehearsal.project / ".dvc/config").read_text(encoding="utf-8")


def revision(checkout: Path) -> str:
    """Return the short hash of a checkout's commit, with a note if tracked files differ from it."""
    changed = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    return _git(checkout, "rev-parse", "--short", "HEAD") + (" with changes" if changed else "")


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RehearsalError(f"git {words[0]} in {folder}: {done.stderr.strip()}; a rehearsal needs a clone")
    return done.stdout.strip()


def digest_of(folder: Path) -> str:
    """Return SHA-256 of the names and bytes of all files below a folder."""
    digest = sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def use_data(rehearsal: Rehearsal, tiles: int) -> None:
    """Configure the pipeline for so many tiles of each class."""
    settings = {
        "obtain": f"tilewise data synth --out data/raw/synthetic --tiles {tiles} --seed 0",
        "folder": "data/raw/synthetic",
        "split": "--split random --fractions 0.5,0.2,0.3 --seed 0",
        "settings": EXPERIMENT,
    }
    text = yaml.safe_dump(settings, sort_keys=False)
    (rehearsal.project / "configs/pipeline.yaml").write_text(text, encoding="utf-8")


def version_data(rehearsal: Rehearsal, name: str) -> None:
    """Render, validate and pack the tiles; commit, tag and push this version of the data."""
    rehearsal.run("dvc", "repro", "--quiet", "pack", show=1)
    rehearsal.run("git", "add", "--all", show=0)
    rehearsal.run("git", "commit", "--quiet", "--message", f"Data: {name}", show=0)
    rehearsal.run("git", "tag", "--annotate", "--message", name, name, show=0)
    rehearsal.run("dvc", "push", show=1)


def train(rehearsal: Rehearsal, name: str, *more: str) -> None:
    """Train a network and register it as the candidate."""
    rehearsal.python(
        *("-m", "tilewise", "train", "--config", EXPERIMENT, "--data.pack", "data/packed"),
        *("--tracking.uri", rehearsal.settings["MLFLOW_TRACKING_URI"], "--tracking.experiment", "rehearsal"),
        *("--out", f"artifacts/runs/{name}", *more),
        show=0,
    )
    metrics = json.loads((rehearsal.project / f"artifacts/runs/{name}/evaluation/metrics.json").read_text())
    rehearsal.tell(f"    test split: {_figures(metrics)}")
    rehearsal.python(
        "-m", "tilewise", "register", "--run", f"artifacts/runs/{name}", "--by", "ci", "--why", name, show=1
    )


def promote(rehearsal: Rehearsal, *more: str, expect: int = 0, show: int = 24) -> str:
    """Measure the candidate by the gates, and promote it if it passes and is approved."""
    return rehearsal.python(
        *("-m", "tilewise", "promote", "--data", "data/packed", "--gates", GATES, *more),
        expect=expect,
        show=show,
    )


def first_model(rehearsal: Rehearsal) -> str:
    """Version the data, train v1 and promote it; return the digest of the data."""
    rehearsal.step("train v1 on the first version of the data")
    version_data(rehearsal, "data-1")
    train(rehearsal, "v1", "--trainer.max_epochs", "16")
    rehearsal.step("v1 through the gates: a person approves, and its bento is built")
    promote(rehearsal, "--approve", "Ada", "--why", "the first")
    return digest_of(rehearsal.project / "data/raw/synthetic")


@contextmanager
def open_site(
    rehearsal: Rehearsal, champion: str, candidate: str, balancer: str, registry: str
) -> Iterator[Site]:
    """Serve the champion, with a balancer, a client, and monitoring."""
    rehearsal.step("serve: the service follows models:/tilewise@champion, watched by Prometheus")
    follows = {"TILEWISE_RELOAD_SECONDS": "1", "TILEWISE_WORKERS": "1", "TILEWISE_OPEN_METRICS": "1"}
    drift = {"TILEWISE_DRIFT_WINDOW": "1024", "TILEWISE_DRIFT_MIN_TILES": "128"}
    command, settings = service(
        champion, rehearsal.folder / "bentoml", "models:/tilewise@champion", **follows, **drift
    )
    with ExitStack() as stack:
        environment = rehearsal.environment() | settings
        stack.enter_context(
            running(
                "champion", command, rehearsal.folder, f"{champion}/readyz", environment, rehearsal.project
            )
        )
        addresses = [httpx.URL(url).netloc.decode() for url in (balancer, champion, candidate)]
        route = stack.enter_context(balanced(rehearsal.folder, *addresses))
        watch = stack.enter_context(
            monitoring(rehearsal.folder / "watch", [addresses[1]], hold=HOLD, scrape=SCRAPE)
        )
        client = Client(balancer, pause=OFTEN_S)
        client.start()
        stack.callback(client.stop)
        site = Site(champion, candidate, balancer, registry, route, watch, client)
        rehearsal.wait_until(lambda: client.answered >= 20, "requests through the balancer are answered")
        rehearsal.wait_until(
            lambda: bool(watch.query("tilewise_drift")), "Prometheus sees the service and its drift"
        )
        rehearsal.check(model_of(champion) == "v1", f"GET {champion}/model answers v1")
        client.pause = SELDOM_S
        yield site


@contextmanager
def busy(site: Site) -> Iterator[None]:
    """Let the client send requests often for the duration of the block."""
    site.client.pause = OFTEN_S
    try:
        yield
    finally:
        site.client.pause = SELDOM_S


def refuse_a_bad_model(rehearsal: Rehearsal, site: Site) -> None:
    """Refuse a model that was trained for too short a time."""
    rehearsal.step("v2, trained for one epoch: the gates refuse it")
    train(rehearsal, "v2", "--trainer.max_epochs", "1", "--model.optimisation.rate", "0.0005")
    output = promote(rehearsal, "--approve", "Ada", expect=1)
    rehearsal.check("gates fail" in output, "refused, in spite of an approval")
    rehearsal.check(model_of(site.champion) == "v1", "the service goes on with v1")


def better_data_and_model(rehearsal: Rehearsal) -> None:
    """Version the data again, and train a model on them."""
    rehearsal.step("a second version of the data, and v3 trained on it")
    use_data(rehearsal, tiles=60)
    version_data(rehearsal, "data-2")
    rehearsal.python("-m", "tilewise", "data", "diff", "data-1", "data-2", show=-3)
    train(rehearsal, "v3")


def canary(rehearsal: Rehearsal, site: Site) -> None:
    """Release version 3 step by step, and promote it."""
    rehearsal.step("v3 as a canary: 10 %, 50 %, then champion")
    promotion = f"-m tilewise promote 3 --data data/packed --gates {GATES} --approve Grace --why better"
    before = site.client.answered
    try_out(
        rehearsal, site, "models:/tilewise/3", "10,50", "--full", f"{sys.executable} {promotion}", show=30
    )
    rehearsal.check(
        model_of(site.champion) == "v3", "the champion's service took v3 up by itself, without a restart"
    )
    rehearsal.check(
        not site.client.failed, f"{site.client.answered - before} requests meanwhile, none failed"
    )


def try_out(
    rehearsal: Rehearsal,
    site: Site,
    model: str,
    steps: str,
    *more: str,
    expect: int = 0,
    show: int = 8,
    minutes: float = 0.3,
) -> str:
    """Run the canary, which starts the candidate's service."""
    with busy(site):
        return rehearsal.python(
            *("deploy/canary.py", "run", "--prometheus", site.watch.prometheus),
            *("--haproxy", str(site.route.path), "--champion", site.champion, "--candidate", site.candidate),
            *(
                "--serve",
                model,
                "--steps",
                steps,
                "--minutes",
                str(minutes),
                "--min-requests",
                "5",
                "--wait",
                "2",
            ),
            *(
                "--targets",
                str(site.watch.folder / "targets.json"),
                "--folder",
                str(rehearsal.folder / "canary"),
                *more,
            ),
            expect=expect,
            show=show,
        )


def drift(rehearsal: Rehearsal, site: Site) -> None:
    """Change the tiles that the client sends, until the alert of drift fires."""
    rehearsal.step(f"drift: winter light, every reflectance at {DRIFT_GAIN:.0%} of what it was")
    rehearsal.check(not site.watch.alerts("TilewiseInputDrifts"), "before it, no band drifts")
    site.client.gain = DRIFT_GAIN
    try:
        with busy(site):
            fired = site.watch.await_alert("TilewiseInputDrifts", seconds=180)
    except MonitoringError as error:
        raise RehearsalError(str(error)) from error
    rehearsal.tell(f"  Alertmanager holds {len(fired)} × TilewiseInputDrifts; the first:")
    rehearsal.tell(f"    {fired[0]['annotations']['summary']}")
    rehearsal.tell(f"    {fired[0]['annotations']['runbook_url']}")
    actions = {alert["labels"].get("action") for alert in fired}
    rehearsal.check(actions == {"retrain"}, "its label is action=retrain")


def retrain(rehearsal: Rehearsal, site: Site) -> None:
    """Retrain because of the alert, by the command that cron and CI run; it ends at the gates."""
    rehearsal.step("the alert starts a retraining, which ends at the gates")
    use_data(rehearsal, tiles=80)
    rehearsal.python(
        *("-m", "tilewise", "retrain", "--if-alert", site.watch.prometheus, "--gates", GATES, "--by", "cron"),
        expect=(0, 4),  # passed and waits for a person, or refused; what comes of so little training is open
        show=5,
    )
    rehearsal.run("git", "commit", "--quiet", "--all", "--message", "Retrained because of drift", show=0)
    rehearsal.run("dvc", "push", show=1)
    rehearsal.check(model_of(site.champion) == "v3", "nobody approved it, so the service goes on with v3")
    site.client.gain = 1.0


def roll_back_a_canary(rehearsal: Rehearsal, site: Site) -> None:
    """Roll back a canary by its alerts."""
    rehearsal.step("v2 as a canary, past the gates: alerts take it out, no person does")
    try_out(rehearsal, site, "models:/tilewise/2", "50", "--version", "2", expect=3, minutes=2)
    rehearsal.check(site.route.weights()["candidate"] == 0, "the balancer gives the candidate 0 %")
    rehearsal.check(model_of(site.champion) == "v3", "the service goes on with v3")


def roll_back_the_champion(rehearsal: Rehearsal, site: Site, first_data: str) -> None:
    """Roll back to the former champion and its data."""
    rehearsal.step("rollback: a person takes v3 back; the service follows, and the data")
    rehearsal.python("-m", "tilewise", "rollback", "--by", "Ada", "--why", "rehearsed", show=1)
    rehearsal.wait_until(
        lambda: model_of(site.champion) == "v1", f"GET {site.champion}/model answers v1 again"
    )
    rehearsal.run("git", "checkout", "--quiet", "data-1", show=0)
    rehearsal.run(
        "dvc", "checkout", "data/raw/synthetic", "data/packed", show=3
    )  # no model was tracked at that time
    rehearsal.check(
        digest_of(rehearsal.project / "data/raw/synthetic") == first_data,
        "the data of v1 are back, byte for byte",
    )
    rehearsal.python("-m", "tilewise", "history", show=30)
    failed = sum(site.client.failed.values())
    rehearsal.tell(f"  client: {site.client.answered} requests answered, {failed} failed")


def model_of(url: str) -> str:
    """Return the run that made a service's model: its version is the run's name and a part of a digest."""
    version = str(httpx.get(f"{url}/model", trust_env=False, timeout=30).raise_for_status().json()["version"])
    return version.rpartition("-")[0]


def _mlflow(rehearsal: Rehearsal, url: str) -> list[str]:
    store, artifacts = rehearsal.folder / "mlflow.db", rehearsal.folder / "mlartifacts"
    return [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", url.rpartition(":")[2]),
        *("--workers", "1", "--backend-store-uri", f"sqlite:///{store}"),
        *("--serve-artifacts", "--artifacts-destination", str(artifacts)),
    ]


def _settings(folder: Path, registry: str) -> dict[str, str]:
    """Return the environment variables of all commands."""
    return {
        **git_identity(),
        "MLFLOW_TRACKING_URI": registry,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # four processes that are not needed here
        "BENTOML_HOME": str(folder / "bentos"),
        "BENTOML_DO_NOT_TRACK": "True",
        "DVC_NO_ANALYTICS": "1",
        "OMP_NUM_THREADS": "1",  # several threads would spin on a busy machine
        "COLUMNS": "110",
    }


def _figures(metrics: dict[str, Any]) -> str:
    """Return the main figures of the test split from a run's metrics."""
    figures = metrics["groups"]["all"]
    return f"{figures['tiles']} tiles, accuracy {figures['accuracy']:.3f}, macro F1 {figures['macro_f1']:.3f}"


def write_down(log: Path, page: Path, commit: str) -> None:
    """Put the log into a page, between its two marks, below the date and the commit that was rehearsed.

    Raises:
        RehearsalError: the page has no marks.
    """
    text = page.read_text(encoding="utf-8")
    before, begins, rest = text.partition(MARKS[0])
    _, ends, after = rest.partition(MARKS[1])
    if not ends:
        raise RehearsalError(f"{page}: has no marks for the output; put {MARKS[0]} and {MARKS[1]} around it")
    head = f"Printed on {datetime.now(UTC):%Y-%m-%d} from commit {commit}, on {usable_cores()} cores:"
    block = f"\n{head}\n\n```text\n{log.read_text(encoding='utf-8').strip()}\n```\n\n"
    page.write_text(before + begins + block + ends + after, encoding="utf-8")


def _too_late(number: int, frame: FrameType | None) -> None:
    raise RehearsalError("the time limit is over; --minutes raises it")


def _require_programs() -> None:
    missing = [
        *missing_programs(),
        *(package for name, package in _NEEDED.items() if shutil.which(name) is None),
    ]
    if missing:
        raise RehearsalError(f"not installed: {', '.join(missing)}; apt-get install {' '.join(missing)}")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Keeps logs, project and registry [artifacts/rehearsal/<time>].",
)
@click.option(
    "--minutes", default=LIMIT_MINUTES, show_default=True, type=click.IntRange(1), help="Time limit."
)
@click.option(
    "--document", type=click.Path(path_type=Path, exists=True), help="A page that the output is written into."
)
@one_line_errors
def main(folder: Path | None, minutes: int, document: Path | None) -> None:
    """Rehearse a model's whole life cycle on this machine, with real processes, and print the results of each
    step.

    Train v1, gates, promotion, service; a bad v2 refused; a better v3 as a canary, promoted; drift, alert,
    retraining; rollbacks. Exit status 0: all checks passed. Needs git, and Debian's haproxy, prometheus and
    prometheus-alertmanager; contacts nothing outside this machine.
    """
    _require_programs()
    folder = (
        folder or PROJECT / "artifacts/rehearsal" / datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    ).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGALRM, _too_late)
    signal.alarm(minutes * 60)
    begun, commit = time.monotonic(), revision(PROJECT)
    with (folder / "rehearsal.log").open("w", encoding="utf-8") as log:
        rehearsal = Rehearsal(folder, log, STEPS)
        rehearse(rehearsal)
        seconds = int(time.monotonic() - begun)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = int(used.ru_utime + used.ru_stime)
        minutes, seconds = divmod(seconds, 60)
        rehearsal.tell(f"\nrehearsed in {minutes} min {seconds} s, with {cpu} s of processor time")
    click.echo(f"logs are in {folder}")
    if document:
        write_down(folder / "rehearsal.log", document, commit)


if __name__ == "__main__":
    main()
