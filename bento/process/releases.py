"""Which model answers: a champion, and beside it perhaps a candidate that is tried out.

Sources are looked at every few seconds. A model that a source newly names is loaded and checked in the background, and
takes over between two requests: each request is answered by one model from its first tile to its last. A model that
fails its check is refused, and the one that serves goes on serving.
"""

import hashlib
import logging
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from bento.engine import Engine
from bento.process.sources import ModelSource
from bento.watch import metrics
from datasets.errors import ModelFileError
from models.modelfile import ModelMetadata

_LOG = logging.getLogger("sentile")


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
