"""A writer of results is killed at any moment: what the manifest says is in the folder, byte for byte."""

import hashlib
import multiprocessing
import random
import time
from itertools import count
from pathlib import Path

from tilewise.bento.batch.manifest import STAGING, Manifest, ResultFile, SceneOutcome, SceneState, is_intact

SCENES = ("coast", "valley", "town")
SUFFIXES = (".classes.tif", ".windows.parquet", ".png")
KILLS = 12


def write(out: Path, seed: int) -> None:
    """Classify scenes over and over, with other results each time, some with fewer files."""
    with Manifest(out) as manifest:
        for turn in count():
            name = SCENES[turn % len(SCENES)]
            staged = manifest.staging / f"{turn}"
            staged.mkdir()
            files = []
            for suffix in SUFFIXES[: 1 + (turn + seed) % len(SUFFIXES)]:
                content = f"{seed} {turn} {suffix}".encode() * 5_000
                (staged / f"{name}{suffix}").write_bytes(content)
                digest = hashlib.sha256(content).hexdigest()
                files.append(ResultFile(f"{name}{suffix}", len(content), digest))
            outcome = SceneOutcome(name, f"{name}.tif", SceneState.DONE, f"{seed} {turn}", files=tuple(files))
            manifest.enter(outcome, staged)


def test_a_scene_that_is_entered_is_whole_whenever_the_writer_is_killed(tmp_path: Path) -> None:
    drawn, seen = random.Random(0), 0  # noqa: S311
    processes = multiprocessing.get_context("fork")
    for seed in range(KILLS):
        writer = processes.Process(target=write, args=(tmp_path, seed))
        writer.start()
        while not list(tmp_path.glob(f"{STAGING}*")) and writer.is_alive():
            time.sleep(0.002)
        time.sleep(drawn.uniform(0, 0.5))
        writer.kill()
        writer.join(30)
        with Manifest(tmp_path) as manifest:
            known = manifest.known()
            assert all(is_intact(outcome, tmp_path) for outcome in known.values())
            assert len(list(tmp_path.glob(f"{STAGING}*"))) == 1, "this one's own"
            for outcome in known.values():
                named = {file.name for file in outcome.files}
                there = {path.name for path in tmp_path.glob(f"{outcome.name}.*")}
                assert named <= there
            seen += len(known)
    assert seen, "scenes were entered between the kills"
