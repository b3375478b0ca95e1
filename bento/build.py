"""`tilewise build`: a bento with code and one model file, ready to serve or to containerise, without torch.

`bentoml build` alone packs the code; that bento serves the model that TILEWISE_MODEL names. This command
packs the model, too, so that code and model have one version.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import bentoml
import click
import yaml
from bentoml.exceptions import NotFound
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tilewise.bento.inference.engine import Engine
from tilewise.datasets.core.console import CONTEXT, model_option, one_line_errors
from tilewise.datasets.core.errors import TilewiseError
from tilewise.datasets.core.files import sha256_of
from tilewise.datasets.core.locations import PACKAGE, PACKED_MODEL
from tilewise.models.model_file import find_model, int8_of

BENTOFILE = "bentofile.yaml"
REQUIREMENTS = "requirements.txt"
_NAME = "tilewise"  # of the service, and so of its bentos
_BUILD_SECONDS = 300


def build(model: Path, version: str | None = None) -> str:
    """Build a bento with `model` and return its tag, `tilewise:VERSION`.

    Args:
        version: of the bento; None: the model's version and the start of its hash.

    Raises:
        ModelFileError: the model fails its self-check.
        TilewiseError: BentoML cannot build it, e.g. because this version exists.
    """
    engine = Engine(model, threads=1)
    version = version or default_version(engine)
    labels = {
        "model": engine.metadata.name,
        "model-version": engine.metadata.version,
        **_hashes(model, engine),
    }
    with tempfile.TemporaryDirectory(prefix="tilewise-build-") as folder:
        context = Path(folder)
        _stage(model, context)
        command = [sys.executable, "-m", "bentoml", "build", "--output", "tag", "--version", version]
        for name, value in labels.items():
            command += ["--label", f"{name}={value}"]
        return _run(command, context)


def find_built(model: Path, version: str) -> str | None:
    """Return the tag of an existing bento of that version with this model, or None.

    Raises:
        ModelFileError: the model fails its self-check.
        TilewiseError: a bento of that version holds another model.
    """
    try:
        found = bentoml.get(f"{_NAME}:{version}")
    except NotFound:
        return None
    if not _hashes(model, Engine(model, threads=1)).items() <= found.info.labels.items():
        raise TilewiseError(
            f"{found.tag} is built around another model; delete it with `bentoml delete {found.tag}`"
        )
    return str(found.tag)


def _hashes(model: Path, engine: Engine) -> dict[str, str]:
    """Return the labels that identify a bento's model files."""
    int8 = int8_of(model)
    return {"model-sha256": engine.sha256, "model-int8-sha256": sha256_of(int8) if int8.is_file() else "none"}


def default_version(engine: Engine) -> str:
    """Return the version of a model's bento, in lower case, as BentoML's tags require."""
    return re.sub(r"[^a-z0-9._-]", "-", f"{engine.metadata.version}-{engine.sha256[:8]}".lower())


def pinned(requirements: Iterable[str]) -> list[str]:
    """Return `name==version`, as installed here, of the requirements and all their dependencies, sorted.

    Raises:
        TilewiseError: one is not installed, or its version conflicts with a requirement.
    """
    versions: dict[str, str] = {}
    queue = [(Requirement(text), "") for text in requirements]
    while queue:
        requirement, extra = queue.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        if name in versions and not requirement.extras:
            continue
        try:
            found = distribution(name)
        except PackageNotFoundError as error:
            raise TilewiseError(f"{name} is not installed; pip install tilewise") from error
        if not requirement.specifier.contains(found.version, prereleases=True):
            raise TilewiseError(
                f"{name} {found.version} is installed, but {requirement} is needed; run pip check"
            )
        versions[name] = found.version
        extras = ("", *requirement.extras)
        queue += [(Requirement(text), extra) for text in found.requires or [] for extra in extras]
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


def _stage(model: Path, context: Path) -> None:
    """Copy the model and the files that the bentofile includes to `context`; pin packages as installed."""
    bentofile = yaml.safe_load((PACKAGE / BENTOFILE).read_text(encoding="utf-8"))
    for pattern in bentofile["include"]:
        root = PACKAGE.parent / pattern.removesuffix("/**")
        for source in [root] if root.is_file() else sorted(root.rglob("*")):
            if source.is_file() and "__pycache__" not in source.parts:
                _copy(source, context / source.relative_to(PACKAGE.parent))
    packed = context / PACKED_MODEL.relative_to(PACKAGE.parent)
    _copy(model, packed)
    if int8_of(model).is_file():  # the machine that serves chooses between the two
        _copy(int8_of(model), int8_of(packed))
    (context / REQUIREMENTS).write_text(
        "\n".join(pinned(bentofile["python"]["packages"])) + "\n", encoding="utf-8"
    )
    # The requirements are pinned already: locking them would query a package index.
    content: dict[str, Any] = {
        **bentofile,
        "python": {"requirements_txt": REQUIREMENTS, "lock_packages": False},
    }
    (context / BENTOFILE).write_text(yaml.safe_dump(content), encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _run(command: list[str], context: Path) -> str:
    """Run the build in a subprocess, which imports the staged code."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TILEWISE_")}
    environment["PYTHONPATH"] = str(context)
    done = subprocess.run(
        command,
        cwd=context,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_BUILD_SECONDS,
        check=False,
    )
    tag = re.search(r"^__tag__:(\S+)$", done.stdout, re.MULTILINE)
    if done.returncode != 0 or not tag:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise TilewiseError(
            f"bentoml build failed: {lines[-1] if lines else f'exit status {done.returncode}'}"
        )
    return tag.group(1)


@click.command(context_settings=CONTEXT)
@model_option
@click.option(
    "--version", "version", help="Version of the bento. Default: the model's, and the start of its hash."
)
@click.option(
    "--keep", "keep", is_flag=True, help="With --version: use the existing bento, if it holds this model."
)
@one_line_errors
def main(model: str | None, version: str | None, keep: bool) -> None:
    """Build a bento, which is code and model in one, and print its tag.

    \b
      tilewise build --model artifacts/runs/first/model.onnx
      bentoml serve TAG
      docker build deploy/service --tag tilewise:latest --build-context bento="$(bentoml get TAG -o path)"
    """
    path = find_model(model)
    known = find_built(path, version) if keep and version else None
    click.echo(known or build(path, version))
