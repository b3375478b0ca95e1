"""Which model answers: a champion, and beside it perhaps a candidate that is tried out.

Sources are looked at every few seconds. A model that a source newly names is loaded and checked in the background, and
takes over between two requests: each request is answered by one model from its first tile to its last. A model that
fails its check is refused, and the one that serves goes on serving.
"""

import hashlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tilewise.bento import metrics
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.precision import Precision, pick, state
from tilewise.datasets.core.errors import ModelFileError
from tilewise.datasets.core.locations import MODEL_NAME
from tilewise.models.model_file import REGISTRY_PREFIX, ModelMetadata, find_model, int8_of

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient


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
            raise ModelFileError(f"{path}: there is no such model; `tilewise train` makes one")
        return Found(pick(path, self.precision), f"{path}:{known}:{state(int8_of(path))}")


@dataclass(frozen=True, slots=True)
class AliasSource:
    """An alias or a version in MLflow's registry: `models:/tilewise@champion`, `models:/tilewise/3`.

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
            raise ModelFileError(f"{self.uri}: MLflow is not installed; pip install 'tilewise[ops]'") from error
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


def source_of(overrides: str | None, precision: Precision = Precision.AUTO) -> ModelSource:
    """Return the source that a setting names: an MLflow URI, a path, or None for the newest exported model."""
    if overrides and overrides.startswith(REGISTRY_PREFIX):
        return AliasSource(overrides, precision)
    return FileSource(Path(overrides) if overrides else None, precision)


def _version(client: "MlflowClient", uri: str) -> "ModelVersion":
    name, at, alias = uri.removeprefix(REGISTRY_PREFIX).partition("@")
    if at:
        return client.get_model_version_by_alias(name, alias)
    name, slash, number = name.rpartition("/")
    if not slash:
        raise ModelFileError(
            f"{uri}: names no version; say {REGISTRY_PREFIX}NAME@ALIAS or {REGISTRY_PREFIX}NAME/VERSION"
        )
    return client.get_model_version(name, number)


def _cache(key: str) -> Path:
    """Return a folder of this user's own for a version's files."""
    root = Path(tempfile.gettempdir()) / f"tilewise-models-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
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


_LOG = logging.getLogger("tilewise")


class Mode(StrEnum):
    """What a candidate does: nothing, answer in secret (shadow), or answer a share of the requests (canary)."""

    OFF = "off"
    SHADOW = "shadow"
    CANARY = "canary"


def created_at(metadata: ModelMetadata) -> float:
    """Return when a model was made, in seconds since 1970; 0 where its file does not say so in ISO 8601."""
    try:
        made = datetime.fromisoformat(metadata.created)
    except ValueError:
        return 0.0
    return (made if made.tzinfo else made.replace(tzinfo=UTC)).timestamp()


@dataclass(slots=True)
class _Slot:
    """A source, and the engine of the model that it last named."""

    name: str
    source: ModelSource
    threads: int
    engine: Engine | None = None
    identity: str = ""

    def refresh(self) -> None:
        """Load the model if the source names another than before; raises ModelFileError and keeps the old one."""
        found = self.source.find()
        if found.identity == self.identity:
            return
        self.identity = found.identity  # also of a model that is refused: it is not tried again every few seconds
        engine = Engine(found.path, self.threads)
        before, self.engine = self.engine, engine
        if before is None or before.sha256 != engine.sha256:
            self._tell(before, engine.metadata)
            _LOG.info("%s is now %s %s", self.name, engine.metadata.name, engine.metadata.version)

    def _tell(self, before: Engine | None, metadata: ModelMetadata) -> None:
        """Set the metrics that say which model holds the place, how old it is, and how much it flags by itself."""
        if before is not None:
            metrics.MODEL_SERVES.labels(self.name, before.metadata.version).set(0)
        metrics.MODEL_SERVES.labels(self.name, metadata.version).set(1)
        metrics.MODEL_LOADED.labels(self.name, metadata.version).set_to_current_time()
        metrics.MODEL_CREATED.labels(self.name).set(created_at(metadata))
        metrics.MODEL_FALSE_ALARMS.labels(self.name).set(metadata.outliers.false_alarms if metadata.outliers else 0)


class Releases:
    """The champion and the candidate.

    Args:
        champion: where the answering model comes from; it must be loadable at the start.
        candidate: where the candidate comes from, or None; one that cannot be loaded is reported and done without.
        mode: what the candidate does.
        share: of requests (0-1) that the candidate answers or shadows.
        threads: of each network.
        every: seconds between looks at the sources; 0: never again.
    """

    def __init__(
        self,
        champion: ModelSource,
        candidate: ModelSource | None = None,
        mode: Mode = Mode.OFF,
        share: float = 0.0,
        threads: int = 1,
        every: float = 0.0,
    ) -> None:
        self.mode, self.share = mode, share
        self._champion = _Slot("champion", champion, threads)
        self._champion.refresh()
        self._candidate = _Slot("candidate", candidate, threads) if candidate and mode is not Mode.OFF else None
        self._slots = [self._champion, *([self._candidate] if self._candidate else [])]
        self._refresh_quietly(self._slots[1:])
        self._stop = threading.Event()
        if every > 0:
            threading.Thread(target=self._watch, args=(every,), name="releases", daemon=True).start()

    @property
    def champion(self) -> Engine:
        """The model that answers."""
        assert self._champion.engine is not None  # noqa: S101 - loaded by __init__
        return self._champion.engine

    @property
    def candidate(self) -> Engine | None:
        """The model that is tried out, if there is one."""
        return self._candidate.engine if self._candidate else None

    def route(self, key: str) -> Engine:
        """Return the model that answers a request; the same for the same `key`, as long as shares and models stay."""
        candidate = self.candidate
        return candidate if candidate and self.mode is Mode.CANARY and self.is_chosen(key) else self.champion

    def shadow(self, key: str) -> Engine | None:
        """Return the model that answers a request in secret, if any does."""
        return self.candidate if self.mode is Mode.SHADOW and self.is_chosen(key) else None

    def is_chosen(self, key: str) -> bool:
        """Whether `key` falls into the candidate's share: decided by its hash, so it is the same in every process."""
        drawn = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
        return drawn < self.share

    def close(self) -> None:
        """Stop looking at the sources."""
        self._stop.set()

    def _watch(self, every: float) -> None:
        while not self._stop.wait(every):
            self._refresh_quietly(self._slots)

    def _refresh_quietly(self, slots: list[_Slot]) -> None:
        for slot in slots:
            try:
                slot.refresh()
            except ModelFileError as error:
                metrics.MODEL_REFUSED.labels(slot.name).inc()
                _LOG.error("the %s stays as it is: %s", slot.name, error)
            except Exception:  # the watcher must outlive whatever a registry comes up with
                metrics.MODEL_REFUSED.labels(slot.name).inc()
                _LOG.exception("the %s stays as it is", slot.name)
