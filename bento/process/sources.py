"""Where a model comes from: a file, or an alias in MLflow's registry, which may come to mean another version."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bento.precision import Precision, pick, state
from bento.settings import MODEL_NAME, find_model
from datasets.errors import ModelFileError
from models.precision import int8_of

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

ALIAS_PREFIX = "models:/"


@dataclass(frozen=True, slots=True)
class Found:
    """A model that a source names now.

    Attributes:
        path: the model file.
        identity: changes when the source comes to name another model.
    """

    path: Path
    identity: str


class ModelSource(Protocol):
    """Something that names a model."""

    def find(self) -> Found:
        """Return the model it names now; raises ModelFileError where there is none."""
        ...


@dataclass(frozen=True, slots=True)
class FileSource:
    """A model file; the newest exported one if `path` is None. A file that is replaced is another model.

    Attributes:
        path: of the model file, or None.
        precision: whether the INT8 file beside it may take its place.
    """

    path: Path | None
    precision: Precision = Precision.AUTO

    def find(self) -> Found:
        """Return the file; see `ModelSource`."""
        path = find_model(self.path)
        if not (known := state(path)):
            raise ModelFileError(f"{path}: there is no such model; `python -m training` makes one")
        return Found(pick(path, self.precision), f"{path}:{known}:{state(int8_of(path))}")


@dataclass(frozen=True, slots=True)
class AliasSource:
    """An alias or a version in MLflow's registry: `models:/sentile@champion`, `models:/sentile/3`.

    The registry is the one that MLFLOW_TRACKING_URI names. Promotion and rollback are moves of the alias.

    Attributes:
        uri: as above.
        precision: whether the INT8 file that the version brings may take its model's place.
    """

    uri: str
    precision: Precision = Precision.AUTO

    def find(self) -> Found:
        """Return the version that the alias means now, fetched into a temporary folder once; see `ModelSource`."""
        try:
            from mlflow.artifacts import download_artifacts
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise ModelFileError(f"{self.uri}: MLflow is not installed; pip install 'sentile[ops]'") from error
        try:
            version = _version(MlflowClient(), self.uri)
            folder = _cache(f"{version.name}:{version.version}:{version.source}")
            if not any(folder.rglob("*.onnx")):
                named = f"models:/{version.name}/{version.version}"
                _whole(folder, lambda place: download_artifacts(named, dst_path=str(place)))
        except ModelFileError:
            raise
        except Exception as error:  # every store raises its own kinds
            reason = " ".join(str(error).split())[:200]
            raise ModelFileError(f"{self.uri}: MLflow does not give this model: {reason}") from error
        path = pick(_one_model(folder, self.uri), self.precision)
        return Found(path, f"{version.name}:{version.version}")


def source_of(said: str | None, precision: Precision = Precision.AUTO) -> ModelSource:
    """Return the source that a setting names: an MLflow URI, a path, or None for the newest exported model."""
    if said and said.startswith(ALIAS_PREFIX):
        return AliasSource(said, precision)
    return FileSource(Path(said) if said else None, precision)


def _version(client: "MlflowClient", uri: str) -> "ModelVersion":
    name, at, alias = uri.removeprefix(ALIAS_PREFIX).partition("@")
    if at:
        return client.get_model_version_by_alias(name, alias)
    name, slash, number = name.rpartition("/")
    if not slash:
        raise ModelFileError(f"{uri}: names no version; say {ALIAS_PREFIX}NAME@ALIAS or {ALIAS_PREFIX}NAME/VERSION")
    return client.get_model_version(name, number)


def _cache(key: str) -> Path:
    """Return a folder of this user's own for a version's files."""
    root = Path(tempfile.gettempdir()) / f"sentile-models-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    root.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and root.stat().st_uid != os.getuid():
        raise ModelFileError(f"{root}: belongs to another user; set TMPDIR to a folder of your own")
    folder = root / hashlib.sha256(key.encode()).hexdigest()[:16]
    folder.mkdir(exist_ok=True)
    return folder


def _whole(folder: Path, fetch: Callable[[Path], object]) -> None:
    """Fill `folder` at once: processes that start together must not take half of a version, or its INT8 file alone."""
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder.parent) as partial:
        fetched = Path(partial, "files")
        fetched.mkdir()
        fetch(fetched)
        try:
            fetched.rename(folder)
        except OSError:
            if not any(folder.rglob("*.onnx")):  # else another process was first
                raise


def _one_model(folder: Path, uri: str) -> Path:
    found = sorted(folder.rglob("*.onnx"))
    named = [path for path in found if path.name == MODEL_NAME]
    if len(named or found) != 1:
        raise ModelFileError(f"{uri}: holds {len(found)} ONNX files; one {MODEL_NAME} is wanted")
    return (named or found)[0]
