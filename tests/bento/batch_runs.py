"""Running `tilewise batch` as its users do, and looking at what it leaves."""

import os
import resource
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import NamedTuple

from click.testing import CliRunner

from tilewise.cli import main

ROOT = Path(__file__).parents[2]
OF_THE_RUN = {"manifest.sqlite", "summary.json", "summary.csv", "report.html"}
USUAL = (
    ".classes.tif",
    ".classes.tif.aux.xml",
    ".classes.qml",
    ".probability.tif",
    ".outlier.tif",
    ".polygons.parquet",
    ".quicklook.png",
    ".truecolour.jpg",
    ".stac.json",
    ".windows.parquet",
)


class Done(NamedTuple):
    """How a run ended, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tilewise", "batch", *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "TILEWISE_MODEL"} | more


def batch(*arguments: object, **more: str) -> Done:
    """Run the command within this process, as `tilewise` does."""
    variables = {"TILEWISE_MODEL": None} | more
    with chdir(ROOT):
        done = CliRunner(env=variables).invoke(main, ["batch", *map(str, arguments)], catch_exceptions=False)
    return Done(done.exit_code, done.stdout, done.stderr)


def batch_process(*arguments: object, max_bytes: int | None = None) -> Done:
    """Run the command in a process of its own, in which no file may grow beyond `max_bytes`."""

    def limit() -> None:
        if max_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))

    done = subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=limit,
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def errors(done: Done) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def results_of(*stems: str) -> list[str]:
    """The names of the usual results of scenes."""
    return sorted(f"{stem}{suffix}" for stem in stems for suffix in USUAL)


def results_in(folder: Path) -> dict[str, bytes]:
    """The files of scenes in a folder of results; the reports of the run hold times and are left out."""
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith((".", "manifest."))]
    return {path.name: path.read_bytes() for path in files if path.name not in OF_THE_RUN}
