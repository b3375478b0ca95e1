"""The images' Dockerfiles and locked packages, as far as they can be checked without building them."""

import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import images
import pytest
import yaml
from containers import Root, Volume, size_of
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from promql import DEPLOY

ROOT = DEPLOY.parent
NAMES = sorted(path.parent.name for path in DEPLOY.glob("*/Dockerfile"))
LOCKS = [ROOT / "constraints.txt", *sorted(DEPLOY.glob("*/requirements.lock"))]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TRAINING: dict[str, Any] = yaml.safe_load((DEPLOY / "training-job.yaml").read_text(encoding="utf-8"))


def versions(lock: Path) -> dict[str, str]:
    """Name and version of each package of a lock."""
    found = re.findall(
        r"^([\w.-]+)(?:\[[\w,]+\])?==([^ ;\\]+)", lock.read_text(encoding="utf-8"), re.MULTILINE
    )
    return {canonicalize_name(name): version for name, version in found}


def stages(name: str) -> list[str]:
    return (DEPLOY / name / "Dockerfile").read_text(encoding="utf-8").split("\nFROM ")[1:]


def test_there_is_an_image_of_the_service_of_mlflow_and_of_training() -> None:
    assert NAMES == ["mlflow", "service", "training"]
    assert set(NAMES) < set(images.TRIES)


@pytest.mark.parametrize("name", NAMES)
def test_images_install_only_locked_files_and_keep_no_compiler(name: str) -> None:
    packages, final = stages(name)
    assert "--require-hashes -r /tmp/requirements.lock" in packages
    assert "pip uninstall --yes --quiet pip setuptools" in packages
    assert not re.search(r"apt-get|pip3? install|build-essential|\bg?cc\b|\bgit\b", final)
    assert not re.search(r"build-essential|\bg\+\+|\bg?cc\b|\bgit\b", packages)
    assert re.search(r"^USER \d+:\d+$", final, re.MULTILINE)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.parent.name + "/" + path.name)
def test_each_line_of_a_lock_has_a_version_and_a_hash_and_names_no_place(lock: Path) -> None:
    text = re.sub(r"^#.*\n", "", lock.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for entry in re.split(r"\n(?=\S)", text.strip()):
        first, *hashes = entry.split(" \\\n")
        assert re.fullmatch(r"[\w.-]+(\[[\w,]+\])?==[^ ;@]+( ; .+)?", first), first
        assert hashes, first
        assert all(re.fullmatch(r" +--hash=sha256:[0-9a-f]{64}", line) for line in hashes), first
    assert not re.search(r"https?:|file:|index-url|find-links|(^|\s)[./]", text)


@pytest.mark.parametrize("name", ["service", "training"])
def test_images_have_the_versions_that_passed_the_tests_together(name: str) -> None:
    locked, known = versions(DEPLOY / name / "requirements.lock"), versions(ROOT / "constraints.txt")
    assert locked.items() <= known.items()
    extra = PROJECT["optional-dependencies"]["train"] if name == "training" else []
    needed = {canonicalize_name(Requirement(text).name) for text in [*PROJECT["dependencies"], *extra]}
    assert needed <= locked.keys()


def test_the_development_s_lock_has_every_requirement_of_its_extras_and_what_builds_the_project() -> None:
    extras = PROJECT["optional-dependencies"]
    chosen = ("train", "ops", "dev", "trace", "stream", "stac", "vector", "cluster", "docs", "pretrained")
    needed = [Requirement(text) for name in chosen for text in extras[name]]
    names = {canonicalize_name(requirement.name) for requirement in needed} - {"tilewise"}
    assert names | {"setuptools", "pip"} <= versions(ROOT / "constraints.txt").keys()


def test_the_service_s_image_of_the_compose_file_and_the_job_s_are_built_from_files_here() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    built = {service["image"] for service in services.values() if not re.search(r":v?\d", service["image"])}
    assert built == {"${TILEWISE_IMAGE:-tilewise:latest}", "tilewise-mlflow:latest"}
    (container,) = TRAINING["spec"]["template"]["spec"]["containers"]
    name, _, version = container["image"].rpartition("/")[2].partition(":")
    assert name == "tilewise-training"
    assert version == PROJECT["version"]
    final = stages("training")[1]
    assert f"WORKDIR {container['workingDir']}\n" in final
    user = TRAINING["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    assert f"USER {user}:{user}\n" in final
    assert "/tilewise/configs" in final


def test_the_trial_of_the_training_s_image_is_the_job_s_command_on_a_cpu() -> None:
    words = images.training_command()
    assert words[:3] == ["tilewise", "train", "run"]
    assert "configs/experiments/eurosat.yaml" in words
    last = {word: value for word, value in pairwise(words) if word.startswith("--")}
    assert last["--trainer.accelerator"] == "cpu"
    assert not [word for word in words if "$" in word]


def test_a_container_is_entered_with_its_image_s_variables_and_as_its_user(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    root = Root(tmp_path, "1034:1034", {"PATH": "/opt/bin"})
    line = root.enter(["serve"], {"A": "b c"}, [Volume(tmp_path, "/data", "ro")])
    assert line[-4:] == ["HOME=/tmp", "PATH=/opt/bin", "A=b c", "serve"]
    assert line[line.index("-") + 1 : line.index("--")] == [
        str(tmp_path),
        "1034:1034",
        str(tmp_path),
        "/data",
        "ro",
    ]
    assert (tmp_path / "data").is_dir()
    assert Root.from_json(root.to_json()) == root


def test_a_size_is_that_of_files_each_counted_once(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(bytes(3_000_000))
    (tmp_path / "same").hardlink_to(tmp_path / "folder" / "file")
    (tmp_path / "link").symlink_to("folder/file")
    assert size_of(tmp_path) == 3


def test_the_list_of_packages_is_of_what_the_image_holds(tmp_path: Path) -> None:
    package = tmp_path / "opt/tilewise/lib/python3.11/site-packages/Some_Package-1.2.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: Some_Package\nVersion: 1.2\n")
    status = tmp_path / "var/lib/dpkg/status"
    status.parent.mkdir(parents=True)
    status.write_text(
        "Package: zlib1g\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:1.2.13-1\n"
        "Maintainer: nobody\nDescription: none\n"
    )
    assert [one["purl"] for one in images.python_packages(tmp_path)] == ["pkg:pypi/some-package@1.2"]
    assert [one["purl"] for one in images.debian_packages(tmp_path)] == ["pkg:deb/debian/zlib1g@1%3A1.2.13-1"]


# Versions that are known to be vulnerable.

last_affected = pytest.mark.parametrize(
    ("name", "version"),
    [
        pytest.param("starlette", "0.47.1", id="CVE-2025-54121"),  # a large part of a form blocks the service
        pytest.param("starlette", "0.49.0", id="CVE-2025-62727"),  # a Range header takes quadratic time
        pytest.param("python-multipart", "0.0.33", id="headers-of-a-part"),  # their number is not bounded
    ],
)


@last_affected
def test_a_vulnerable_version_does_not_meet_the_requirement(name: str, version: str) -> None:
    (required,) = [one for one in map(Requirement, PROJECT["dependencies"]) if one.name == name]
    assert not required.specifier.contains(version)


@last_affected
def test_no_lock_has_a_vulnerable_version(name: str, version: str) -> None:
    locked = [Version(found[name]) for found in map(versions, LOCKS) if name in found]
    assert len(locked) > 1
    assert min(locked) > Version(version)
