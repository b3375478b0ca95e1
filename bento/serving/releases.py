"""Releases: the champion, which answers, and perhaps a candidate, which is tried out as shadow or canary.

A model comes from a source: a file, or an alias in MLflow's registry. Sources are polled every few seconds. A
new model is loaded and checked in the background and takes over between two requests, so that one model
answers each request from its first tile to its last. A model that fails its check is refused, and the former
one goes on serving.
"""

import hashlib
import json
import logging
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tilewise.bento import metrics
from tilewise.bento.inference.device import Device
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.precision import Precision, pick, state
from tilewise.datasets.core.errors import ModelFileError
from tilewise.datasets.core.files import sha256_of
from tilewise.datasets.core.locations import MODEL_NAME
from tilewise.models.model_file import REGISTRY_PREFIX, ModelMetadata, find_model, int8_of

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

_LOG = logging.getLogger("tilewise")


# Sources of models.


@dataclass(frozen=True, slots=True)
class FoundModel:
    """The model that a source names now.

    Attributes:
        path: of the model file.
        identity: a text that changes when the source names another model.
    """

    path: Path
    identity: str


class RegistryDownError(ModelFileError):
    """The registry gives no answer, which says nothing about the model."""


class ModelSource(Protocol):
    """A name of a model, which may mean another model later."""

    def find(self) -> FoundModel:
        """Return the model that it names now; raises ModelFileError if there is none."""
        ...

    def find_last(self) -> FoundModel | None:
        """Return the model that it named when it was last found on this machine, if that is still here."""
        ...


def find_at_start(source: ModelSource) -> FoundModel:
    """Return the model of a source; where its registry gives no answer, the last one, with a warning.

    Raises:
        ModelFileError: there is none.
    """
    try:
        return source.find()
    except RegistryDownError as error:
        found = source.find_last()
        if found is None:
            raise
        _LOG.warning("%s; starting with %s, which was found here before", error, found.identity)
        return found


@dataclass(frozen=True, slots=True)
class FileSource:
    """A model file. A file that is replaced is another model.

    Attributes:
        path: of the model file; None: the default of `find_model`.
        precision: whether the INT8 file beside it may be served instead.
    """

    path: Path | None
    precision: Precision = Precision.AUTO

    def find(self) -> FoundModel:
        """Return the file, or its INT8 file; see `ModelSource.find`."""
        path = find_model(self.path)
        if not (known := state(path)):
            raise ModelFileError(f"{path}: there is no such model; `tilewise train` makes one")
        return FoundModel(pick(path, self.precision), f"{path}:{known}:{state(int8_of(path))}")

    def find_last(self) -> None:
        """Return None: a file has no registry that could be down."""


@dataclass(frozen=True, slots=True)
class AliasSource:
    """An alias or a version in MLflow's registry: `models:/tilewise@champion`, `models:/tilewise/3`.

    The registry is the one that MLFLOW_TRACKING_URI names. Promotion and rollback move the alias.

    Attributes:
        uri: as above.
        precision: whether the INT8 file of the version may be served instead.
    """

    uri: str
    precision: Precision = Precision.AUTO

    def find(self) -> FoundModel:
        """Return the version that the alias names now, downloaded once; see `ModelSource.find`."""
        try:
            from mlflow.artifacts import download_artifacts
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise ModelFileError(
                f"{self.uri}: MLflow is not installed; pip install 'tilewise[ops]'"
            ) from error
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        try:
            version = _version(MlflowClient(), self.uri)
            folder = _cache(f"{version.name}:{version.version}:{version.source}")
            if not any(folder.rglob("*.onnx")):
                named = f"models:/{version.name}/{version.version}"
                _fill(folder, lambda target: download_artifacts(named, dst_path=str(target)))
        except ModelFileError:
            raise
        except Exception as error:  # every store raises its own kinds
            reason = " ".join(str(error).split())[:200]
            known = getattr(error, "error_code", "") in _ANSWERS
            kind = ModelFileError if known else RegistryDownError
            raise kind(f"{self.uri}: MLflow cannot provide this model: {reason}") from error
        digests = {name: version.tags.get(name, "") for name in ("sha256", "int8_sha256")}
        last = _LastFound(f"{version.name}:{version.version}", folder.name, **digests)
        found = self._checked(last)
        self._remember(json.dumps(asdict(last)))
        return found

    def find_last(self) -> FoundModel | None:
        """Return the version that the alias named last; see `ModelSource.find_last`."""
        try:
            return self._checked(_LastFound(**json.loads(self._record().read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            return None

    def _checked(self, last: "_LastFound") -> FoundModel:
        path = _one_model(_cache_root() / last.folder, self.uri)
        _check_registered(path, last.sha256, self.uri)
        if int8_of(path).is_file():
            # `tilewise register` writes both digests; a version of another program has none.
            registered = last.int8_sha256 or (_NO_INT8 if last.sha256 else "")
            _check_registered(int8_of(path), registered, self.uri)
        return FoundModel(pick(path, self.precision), last.identity)

    def _remember(self, last: str) -> None:
        """Keep what was found, for a start without the registry; every worker of a service does so."""
        record = self._record()
        if record.is_file() and record.read_text(encoding="utf-8") == last:
            return
        try:
            with tempfile.TemporaryDirectory(prefix=".found-", dir=record.parent) as own:
                written = Path(own, record.name)
                written.write_text(last, encoding="utf-8")
                written.replace(record)
        except OSError as error:
            _LOG.warning("%s: not kept for a start without the registry: %s", self.uri, error)

    def _record(self) -> Path:
        """Return the file that says which version the alias named last."""
        key = f"{os.environ.get('MLFLOW_TRACKING_URI', '')} {self.uri}"
        return _cache_root() / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


@dataclass(frozen=True, slots=True)
class _LastFound:
    """A version whose files are in the cache: its identity, their folder, and their registered SHA-256."""

    identity: str
    folder: str
    sha256: str
    int8_sha256: str


_NO_INT8 = "none"  # the tag `int8_sha256` of a version without an INT8 file
_ANSWERS = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "UNAUTHENTICATED")
"""Error codes of MLflow by which a registry says that there is no such model for this caller."""
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}  # MLflow's: minutes


def source_of(model: str | None, precision: Precision = Precision.AUTO) -> ModelSource:
    """Return the source of a setting's value: an MLflow URI, a path, or None for the default model file."""
    if model and model.startswith(REGISTRY_PREFIX):
        return AliasSource(model, precision)
    return FileSource(Path(model) if model else None, precision)


def _version(client: "MlflowClient", uri: str) -> "ModelVersion":
    name, at, alias = uri.removeprefix(REGISTRY_PREFIX).partition("@")
    if at:
        return client.get_model_version_by_alias(name, alias)
    name, slash, number = name.rpartition("/")
    if not slash:
        raise ModelFileError(
            f"{uri}: names no version; use {REGISTRY_PREFIX}NAME@ALIAS or {REGISTRY_PREFIX}NAME/VERSION"
        )
    return client.get_model_version(name, number)


def _cache(key: str) -> Path:
    """Return the folder for the files of a version."""
    folder = _cache_root() / hashlib.sha256(key.encode()).hexdigest()[:16]
    folder.mkdir(exist_ok=True)
    return folder


def _cache_root() -> Path:
    """Return the folder of all versions, which belongs to this user."""
    root = Path(tempfile.gettempdir()) / f"tilewise-models-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    root.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and root.stat().st_uid != os.getuid():
        raise ModelFileError(f"{root}: belongs to another user; set TMPDIR to a folder of your own")
    return root


def _fill(folder: Path, fetch: Callable[[Path], object]) -> None:
    """Fill `folder` atomically: no other process may see a part of a version, such as its INT8 file alone."""
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


def _check_registered(path: Path, registered: str, uri: str) -> None:
    """Refuse a model file whose SHA-256 differs from the registered one, if there is one.

    A file is refused too where the registry says that there is none, rather than fp32 served: somebody wrote
    into the version's files, and `tilewise promote` refuses such a version as well.
    """
    if registered and _sha256(path, state(path)) != registered:
        why = "the registry has no such file" if registered == _NO_INT8 else "its SHA-256 differs"
        raise ModelFileError(
            f"{uri}: the downloaded file {path} is not the registered one ({why}); "
            f"delete {path.parent} to download it again, or register the model again"
        )


@lru_cache(maxsize=16)
def _sha256(path: Path, _: str) -> str:
    """Return the SHA-256 of a file in the given state; cached, since sources are polled every few seconds."""
    return sha256_of(path)


# Champion and candidate.


class Mode(StrEnum):
    """How a candidate is tried out.

    `off`: not at all; `shadow`: it classifies live traffic for comparison and its answers are never returned;
    `canary`: it answers a fraction of the requests.
    """

    OFF = "off"
    SHADOW = "shadow"
    CANARY = "canary"


def created_at(metadata: ModelMetadata) -> float:
    """Return when a model was exported, in seconds since 1970; 0 if its file does not say so in ISO 8601."""
    try:
        made = datetime.fromisoformat(metadata.created)
    except ValueError:
        return 0.0
    return (made if made.tzinfo else made.replace(tzinfo=UTC)).timestamp()


@dataclass(slots=True)
class _Slot:
    """A source, and the engine of the model that it named last."""

    name: str
    source: ModelSource
    threads: int
    device: Device
    engine: Engine | None = None
    identity: str = ""

    def refresh(self) -> None:
        """Load the model if the source names another than before; on ModelFileError the former one stays."""
        found = self.source.find() if self.engine else find_at_start(self.source)
        if found.identity == self.identity:
            return
        self.identity = (
            found.identity
        )  # kept for a refused model too, which is not tried again every few seconds
        engine = Engine(found.path, self.threads, self.device)
        before, self.engine = self.engine, engine
        if before is None or before.sha256 != engine.sha256:
            self._publish(before, engine.metadata)
            _LOG.info("%s is now %s %s", self.name, engine.metadata.name, engine.metadata.version)

    def _publish(self, before: Engine | None, metadata: ModelMetadata) -> None:
        """Set the metrics of the model: that it serves, when it was exported, its rate of false alarms."""
        if before is not None:
            metrics.MODEL_SERVES.labels(self.name, before.metadata.version).set(0)
        metrics.MODEL_SERVES.labels(self.name, metadata.version).set(1)
        metrics.MODEL_LOADED.labels(self.name, metadata.version).set_to_current_time()
        metrics.MODEL_CREATED.labels(self.name).set(created_at(metadata))
        metrics.MODEL_FALSE_ALARMS.labels(self.name).set(
            metadata.outliers.false_alarms if metadata.outliers else 0
        )


class Releases:
    """The champion and the candidate.

    Args:
        champion: source of the champion, which must be loadable at the start.
        candidate: source of the candidate, or None; one that cannot be loaded is reported and ignored.
        mode: how the candidate is tried out.
        fraction: of requests (0-1) that the candidate answers or shadows.
        threads: of each network.
        device: of each network.
        every: seconds between polls of the sources; 0: only at the start.

    Raises:
        ModelFileError: the champion cannot be loaded.
    """

    def __init__(
        self,
        champion: ModelSource,
        candidate: ModelSource | None = None,
        mode: Mode = Mode.OFF,
        fraction: float = 0.0,
        threads: int = 1,
        device: Device = Device.CPU,
        every: float = 0.0,
    ) -> None:
        self.mode, self.fraction, self.device = mode, fraction, device
        self._champion = _Slot("champion", champion, threads, device)
        self._champion.refresh()
        self._candidate = (
            _Slot("candidate", candidate, threads, device) if candidate and mode is not Mode.OFF else None
        )
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
        """Return the model for a request, canary or champion: always the same one for the same `key`."""
        return self.canary(key) or self.champion

    def canary(self, key: str) -> Engine | None:
        """Return the candidate if it is to answer the requests with this `key`."""
        return self._chosen(Mode.CANARY, key)

    def shadow(self, key: str) -> Engine | None:
        """Return the candidate if it is to classify the tiles of requests with this `key` for comparison."""
        return self._chosen(Mode.SHADOW, key)

    def _chosen(self, mode: Mode, key: str) -> Engine | None:
        candidate = self.candidate if self.mode is mode else None
        return candidate if candidate and self.is_chosen(key) else None

    def is_chosen(self, key: str) -> bool:
        """Return whether `key` falls into the candidate's fraction, by its hash: equally in every process."""
        drawn = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
        return drawn < self.fraction

    def close(self) -> None:
        """Stop polling the sources."""
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
                _LOG.error("the %s is not replaced: %s", slot.name, error)
            except Exception:  # whatever a registry raises must not end the thread
                metrics.MODEL_REFUSED.labels(slot.name).inc()
                _LOG.exception("the %s is not replaced", slot.name)
