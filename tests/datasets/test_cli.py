"""The command line, as a person runs it: from nothing to a pack, and every mistake in one line."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rasters import noise, write_folder, write_tiff

from tilewise.datasets.cli import main
from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.packs.pack import Pack

Done = subprocess.CompletedProcess[str]


def run(*arguments: str | Path, cwd: Path | None = None) -> Done:
    """Run a command in this process: one of its own spends most of its time on imports."""
    words = list(map(str, arguments))
    with chdir(cwd or Path.cwd()):
        done = CliRunner(catch_exceptions=False).invoke(main, words, prog_name="tilewise data")
    return Done(words, done.exit_code, done.stdout, done.stderr)


def run_alone(*arguments: str, cwd: Path) -> Done:
    """Run a command in a process of its own."""
    command = [sys.executable, "-m", "tilewise", "data", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=200)


def error_of(done: Done) -> str:
    """Return the one line that a failed command leaves on standard error, apart from progress."""
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("packing: ", "validating: "))]
    assert len(lines) == 1, done.stderr
    return lines[0].removeprefix("error: ")


def test_from_nothing_to_a_pack_with_its_default_paths(tmp_path: Path) -> None:
    made = run_alone("synth", "--tiles", "5", "--seed", "3", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "5 synthetic tiles of each class are in data/raw/synthetic (not real observations)" in made.stdout
    checked = run("validate", "data/raw", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert "passed; the report is in artifacts/validation" in checked.stdout
    packed = run_alone("pack", "data/raw", cwd=tmp_path)
    assert packed.returncode == 0, packed.stderr
    pack = Pack(tmp_path / "data" / "packed")
    assert f"the pack is in data/packed, data hash {pack.summary.data_hash[:12]}" in packed.stdout
    assert (len(pack), pack.summary.synthetic) == (50, True)
    assert Counter(pack.splits.tolist()) == {"train": 30, "val": 10, "test": 10}
    measured = run("stats", "--split", "val", "--out", "stats.json", cwd=tmp_path)
    assert measured.returncode == 0, measured.stderr
    assert all(name in measured.stdout for name in BAND_NAMES)
    bands = json.loads((tmp_path / "stats.json").read_text())["bands"]
    means = [band["mean"] for band in bands]
    assert means == pytest.approx(pack.fetch(pack.rows("val")).mean(axis=(0, 2, 3)).tolist())
    assert f"{means[3]:.1f}" in measured.stdout


def test_help_names_every_command_and_each_has_help() -> None:
    top = run("--help")
    assert top.returncode == 0
    commands = ("fetch", "synth", "validate", "pack", "stats", "diff", "suspects", "correct")
    assert all(f"\n  {command} " in top.stdout for command in commands)
    for command in commands:
        done = run(command, "-h")
        assert done.returncode == 0
        assert f"Usage: tilewise data {command}" in done.stdout


def test_files_that_say_nothing_are_packed_when_they_are_described(tmp_path: Path) -> None:
    for n in range(4):
        write_tiff(tmp_path / "data" / "AB"[n % 2] / f"{n}.tif", noise(n, bands=3), tags={})
    undescribed = run("pack", tmp_path / "data", "--out", tmp_path / "pack")
    assert "3 bands have no names" in error_of(undescribed)
    described = ("--bands", "B08,_,red", "--level", "L2A", "--scale", "0.0001", "--offset", "0")
    assert run("pack", tmp_path / "data", "--out", tmp_path / "pack", *described).returncode == 0
    pack = Pack(tmp_path / "pack")
    assert pack.index["bands"].to_pylist() == [["B04", "B08"]] * 4
    assert np.array_equal(pack.fetch([0])[0][[7, 3]], noise(0, bands=3)[[0, 2]])


def test_lists_and_blocks_divide_the_tiles(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", {f"{label}/{label}_{n}": n for label in "AB" for n in range(3)})
    (tmp_path / "lists").mkdir()
    for n, split in enumerate(("test", "train", "val")):
        (tmp_path / "lists" / f"{split}.txt").write_text(f"A_{n}.jpg\nB_{n}.jpg\n")
    done = run("pack", root, "--out", tmp_path / "pack", "--split", "lists", "--lists", tmp_path / "lists")
    assert done.returncode == 0, done.stderr
    assert Pack(tmp_path / "pack").splits.tolist() == ["test", "train", "val"] * 2
    spatial = run("pack", root, "--out", tmp_path / "pack", "--split", "spatial")
    assert "no coordinates, so it has no spatial block" in error_of(spatial)
    assert Pack(tmp_path / "pack").summary.split_method == "lists"


# Mistakes.


def test_an_unknown_band_is_one_line_that_lists_the_bands(tmp_path: Path) -> None:
    tmp_path.joinpath("data").mkdir()
    for command in ("validate", "pack"):
        overrides = error_of(run(command, tmp_path / "data", "--bands", "B02,B99"))
        assert overrides == f"no Sentinel-2 band is called 'B99'; the bands are {', '.join(BAND_NAMES)}"


def test_an_empty_and_a_missing_folder_are_one_line(tmp_path: Path) -> None:
    tmp_path.joinpath("data").mkdir()
    for command in ("validate", "pack"):
        assert "data: no tiles; geotiff needs data/<Class>/<name>.tif" in error_of(
            run(command, tmp_path / "data")
        )
        assert "there is no such folder" in error_of(run(command, tmp_path / "nowhere"))


def test_a_folder_without_a_pack_is_one_line(tmp_path: Path) -> None:
    assert "no pack is here; `tilewise data pack` makes one" in error_of(run("stats", tmp_path))


def test_shares_and_scales_that_cannot_be_are_one_line(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", {"A/a": 1, "B/b": 2})
    out = ("--out", tmp_path / "pack")
    assert "shares of train, val and test must" in error_of(
        run("pack", root, *out, "--fractions", "0.6,0.2,0.1")
    )
    assert "above 0 km" in error_of(run("pack", root, *out, "--split", "spatial", "--block-km", "0"))
    assert "the scale must be" in error_of(run("pack", root, *out, "--scale", "0"))
    assert not (tmp_path / "pack").exists()


def test_a_file_that_cannot_be_written_is_one_line(pack_folder: Path, tmp_path: Path) -> None:
    overrides = error_of(run("stats", pack_folder, "--out", tmp_path / "no" / "stats.json"))
    assert "No such file or directory" in overrides
    (tmp_path / "file").write_text("")
    root = write_folder(tmp_path / "data", {"A/a": 1, "B/b": 2})
    assert "Not a directory" in error_of(run("validate", root, "--out", tmp_path / "file" / "report"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("pack",),
        ("pack", ".", "--split", "fair"),
        ("pack", ".", "--fractions", "1,2"),
        ("pack", ".", "--fractions", "a,b,c"),
        ("synth", "--tiles", "0"),
        ("stats", "--split", "all"),
        ("train",),
    ],
)
def test_a_wrong_call_exits_with_2_and_says_how_it_goes(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "Usage: tilewise data" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_with_130_and_one_line(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tilewise",
        "data",
        "synth",
        "--tiles",
        "20000",
        "--out",
        str(tmp_path / "tiles"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 120
        while (
            not list(tmp_path.glob("tiles/*/*.tif")) and process.poll() is None and time.monotonic() < until
        ):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "stopped"
    assert "Traceback" not in errors
