"""Versions of data and model in a real git repository with DVC: rollback, diff, and remotes."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml
from click.testing import CliRunner
from tiny_onnx import metadata, write_model

from tilewise.datasets.acquire.synthetic import synthesise, synthesise_tile
from tilewise.datasets.cli import main
from tilewise.datasets.core.errors import PackError, VersionError
from tilewise.datasets.packs.pack import PLANES, Pack
from tilewise.datasets.packs.versions import open_version
from tilewise.datasets.quality.reviewed import AnswerOrigin, Decision, take_up
from tilewise.datasets.readers.corrections import Correction, record
from tilewise.models.model_file import open_model

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[3]
MODEL = Path("artifacts/model.onnx")
SETTINGS = {"folder": "data/raw/synthetic", "split": "--split random --fractions 0.5,0.25,0.25"}
DATA_STAGES = ("reviewed", "validate", "pack")
ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(PROJECT),
    "DVC_NO_ANALYTICS": "1",
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "GIT_CONFIG_GLOBAL": os.devnull,
}


def run(folder: Path, *words: str, fails: bool = False) -> str:
    """Run a command in a clone whose parent folder is $HOME, where the default remote is."""
    environment = ENVIRONMENT | {"HOME": str(folder.parent)}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


@dataclass(frozen=True)
class Repository:
    """A clone with two commits, v1 and v2, and what data and model were in each."""

    root: Path
    data: dict[str, str]

    def is_at(self, version: str) -> bool:
        """Whether data and model, as they lie in the working tree, are those of a version."""
        packed = Pack(self.root / "data/packed").summary.data_hash
        return packed == self.data[version] and open_model(self.root / MODEL).metadata.version == version

    def diff(self, *words: str) -> str:
        done = CliRunner(catch_exceptions=False).invoke(main, ["diff", *words, "--repo", str(self.root)])
        assert done.exit_code == 0, done.output
        return done.output


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """The project's own stages of data, run twice: v1, and v2 after a review and with a tile less."""
    root = tmp_path_factory.mktemp("versions") / "tilewise"
    _lay_out(root)
    data = {"v1": _commit(root, "v1")}
    record(root / "configs/corrections.csv", [Correction("Forest_1", "River", "Ada", "a river")])
    (root / "data/raw/synthetic/Highway/Highway_2.tif").unlink()
    data["v2"] = _commit(root, "v2")
    run(root, "dvc", "push", "-q", "--all-commits")
    return Repository(root, data)


@pytest.fixture(scope="module")
def clone(repository: Repository, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A fresh clone with all that the default remote holds of the newest commit."""
    found = _clone(repository, tmp_path_factory.mktemp("clone"))
    run(found.root, "dvc", "pull")
    return found


def _lay_out(root: Path) -> None:
    """Make a repository of the project's pipeline, without training, and of synthetic tiles."""
    for name in ("datasets", "configs", ".dvc"):
        shutil.copytree(
            PROJECT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "cache", "tmp")
        )
    stages = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
    (root / "dvc.yaml").write_text(
        yaml.safe_dump(
            {"vars": ["configs/pipeline.yaml"], "stages": {name: stages[name] for name in DATA_STAGES}}
        )
    )
    (root / "configs/pipeline.yaml").write_text(yaml.safe_dump(SETTINGS))
    (root / "configs/corrections.csv").write_text("name,label,reviewer,why\n")
    synthesise(root / "data/raw/synthetic", tiles_per_class=4, seed=2)
    run(root, "git", "init", "-q", "-b", "main")


def _commit(root: Path, version: str) -> str:
    """Make a model of this version, run the stages of data, and commit; return the data's hash."""
    (root / MODEL).parent.mkdir(exist_ok=True)
    write_model(root / MODEL, metadata().model_copy(update={"version": version}).model_dump_json())
    run(root, "dvc", "add", "-q", "data/raw/synthetic", str(MODEL))
    run(root, "dvc", "repro", "-q")
    run(root, "git", "add", "-A")
    run(root, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", version)
    run(root, "git", "tag", version)
    return Pack(root / "data/packed").summary.data_hash


def _clone(repository: Repository, folder: Path) -> Repository:
    """Clone without a cache, for somebody whose home has the same store."""
    root = folder / "tilewise"
    run(folder, "git", "clone", "-q", str(repository.root), str(root))
    (folder / "tilewise-store").symlink_to(repository.root.parent / "tilewise-store")
    return Repository(root, repository.data)


# Rollback.


def test_any_earlier_revision_brings_its_data_and_its_model_back(repository: Repository) -> None:
    assert repository.is_at("v2")
    for revision, version in (("v1", "v1"), ("main", "v2")):
        run(repository.root, "git", "checkout", "-q", revision)
        run(repository.root, "dvc", "checkout", "-q")
        assert repository.is_at(version)


def test_a_fresh_clone_has_everything_from_the_default_remote_and_can_go_back_without_another_commit(
    clone: Repository,
) -> None:
    assert clone.is_at("v2")
    run(
        clone.root,
        "git",
        "checkout",
        "-q",
        "v1",
        "--",
        "dvc.lock",
        "configs/corrections.csv",
        "artifacts",
        "data",
    )
    run(clone.root, "dvc", "pull", "data/packed", str(MODEL))
    assert clone.is_at("v1")
    assert "M  dvc.lock" in run(clone.root, "git", "status", "--short")


# What changed.


def test_diff_of_two_revisions_tells_what_became_of_the_tiles(repository: Repository, tmp_path: Path) -> None:
    output = repository.diff("v1", "v2", "--out", str(tmp_path))
    assert "v1: 40 tiles" in output
    assert "1 removed: Highway_2" in output
    assert "1 relabelled: Forest_1 Forest → River" in output
    found = json.loads((tmp_path / "diff.json").read_text())
    assert found["removed"] == [["geotiff", "Highway_2"]]
    # A removed tile shifts the deal of its own class at most; a reviewed label shifts none.
    assert {change["name"].partition("_")[0] for change in found["resplit"]} <= {"Highway"}
    assert {c["name"]: c["after"] - c["before"] for c in found["classes"] if c["before"] != c["after"]} == {
        "Forest": -1,
        "Highway": -1,
        "River": 1,
    }


def test_diff_takes_what_is_packed_now_for_the_second_version(
    repository: Repository, in_folder: Path
) -> None:
    shutil.copytree(repository.root / "data/packed", in_folder / "data/packed")
    assert "the same tiles, classes, splits and pixels" in repository.diff("v2")


@pytest.mark.parametrize(
    ("name", "pack", "message"),
    [
        ("v9", "data/packed", "v9: neither a pack nor a revision"),
        ("v1", "data/elsewhere", "v1: it has no data/elsewhere/pack.json"),
    ],
)
def test_a_version_that_cannot_be_had_is_one_line(
    repository: Repository, name: str, pack: str, message: str
) -> None:
    with pytest.raises(VersionError, match=message):
        open_version(name, Path(pack), repository.root)


def test_outside_of_a_repository_only_packs_are_versions(pack_folder: Path, tmp_path: Path) -> None:
    assert open_version(str(pack_folder)).summary.tiles == 120
    with pytest.raises(VersionError, match="not a git repository; name two packs"):
        open_version("HEAD", repository=tmp_path)


def test_a_pack_without_its_statistics_is_not_compared(pack_folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(pack_folder, tmp_path / "pack")
    (broken / "statistics.json").unlink()
    with pytest.raises(PackError, match="missing; pack again"):
        open_version(str(broken))


# The pipeline.


def test_tiles_that_people_labelled_come_into_the_next_pack_and_go_with_its_commit(
    repository: Repository,
) -> None:
    root = repository.root
    run(root, "git", "checkout", "-q", "main")
    run(root, "dvc", "checkout", "-q")
    tile = synthesise_tile("River", 90, 1)
    model = ("tilewise", "1.0.0", "0" * 64)
    origin = AnswerOrigin("2026-11-24T00:00:00+00:00", "r-1", "Forest", "0.4", "", *model, "0" * 64)
    take_up(root / "data/reviewed", [(Decision("served_1", "River", "Ada", ""), origin, tile)])
    run(root, "dvc", "repro", "-q")
    rows = {row["name"]: row for row in Pack(root / "data/packed").index.to_pylist()}
    assert (rows["served_1"]["label"], rows["served_1"]["split"]) == ("River", "train")
    assert "are up to date" in run(root, "dvc", "repro")
    run(root, "git", "checkout", "-q", "dvc.lock")
    run(root, "dvc", "checkout", "-q", "--force")
    assert repository.is_at("v2")
    assert not list((root / "data/reviewed").glob("*/*.tif"))


def test_a_correction_to_no_known_class_stops_the_pipeline(clone: Repository) -> None:
    record(clone.root / "configs/corrections.csv", [Correction("Forest_2", "Rivr", "Ada", "a slip")])
    output = run(clone.root, "dvc", "repro", "pack", fails=True)
    assert "Forest_2 is corrected to 'Rivr', but no folder has that class" in output
    assert "failed to reproduce 'validate'" in output
    assert "Running stage 'pack'" not in output


# S3.


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 server on a free port of loopback, with the bucket `tiles`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path_factory.mktemp("s3") / "log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url)
        httpx.put(f"{url}/tiles").raise_for_status()
        yield url
    finally:
        server.terminate()
        server.wait(20)
        log.close()


def _wait_for(url: str) -> None:
    for _ in range(300):
        try:
            httpx.get(url)
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"no answer from {url}")


def test_an_s3_remote_takes_versions_and_gives_them_to_who_has_nothing(
    repository: Repository, s3: str, tmp_path: Path
) -> None:
    _use_s3(repository.root, s3)
    run(repository.root, "dvc", "push", "--all-commits", "--remote", "team")
    clone = _clone(repository, tmp_path)
    _use_s3(clone.root, s3)
    run(clone.root, "dvc", "remote", "default", "--local", "team")

    output = run(clone.root, sys.executable, "-m", "tilewise", "data", "diff", "v1", "v2")
    assert "1 relabelled: Forest_1 Forest → River" in output
    planes = Pack(repository.root / "data/packed").planes.nbytes
    fetched = sum(path.stat().st_size for path in (clone.root / ".dvc/cache").rglob("*") if path.is_file())
    assert fetched < planes / 10, "a diff must not fetch pixels"

    run(clone.root, "git", "checkout", "-q", "v1")
    run(clone.root, "dvc", "pull", "data/packed", str(MODEL))
    assert clone.is_at("v1")
    assert (clone.root / "data/packed" / PLANES).stat().st_size > 0


def _use_s3(root: Path, url: str) -> None:
    """Add the remote as docs/data.md says."""
    run(root, "dvc", "remote", "add", "--local", "team", "s3://tiles/tilewise")
    run(root, "dvc", "remote", "modify", "--local", "team", "endpointurl", url)
