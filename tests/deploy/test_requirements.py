"""The requirements of pyproject.toml and the locks: they allow no version that is known to be vulnerable."""

import re
import tomllib
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from promql import DEPLOY

ROOT = DEPLOY.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKS = [ROOT / "constraints.txt", *sorted(DEPLOY.glob("*/requirements.lock"))]
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
    locked = [
        found
        for lock in LOCKS
        for found in re.findall(rf"^{name}==(\S+)", lock.read_text("utf-8"), re.MULTILINE)
    ]
    assert len(locked) > 1
    assert min(map(Version, locked)) > Version(version)
