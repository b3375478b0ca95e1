"""What became of a scene: plain data that goes between processes, into the manifest and into reports."""

from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """How far a scene came."""

    DONE = "done"
    KEPT = "kept"  # done by an earlier run with the same input, options and model
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ResultFile:
    """A file that a scene left: its name in the folder of results, its bytes and their SHA-256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SceneOutcome:
    """What became of one scene.

    Attributes:
        name: stem of the results.
        source: where the scene lies.
        state: how far it came.
        key: of input, options and model together; empty where the scene could not be read.
        windows: how many were classified.
        skipped: how many had too few valid pixels.
        broken: blocks of its files that could not be decoded, and so became no data.
        outliers: windows unlike the training data.
        pixels: width × height.
        seconds: that it took, when it was done.
        area_ha: hectares of each class that occurs.
        files: what lies in the folder of results.
        error: why it failed, or None.
    """

    name: str
    source: str
    state: State
    key: str = ""
    windows: int = 0
    skipped: int = 0
    broken: int = 0
    outliers: int = 0
    pixels: int = 0
    seconds: float = 0.0
    area_ha: dict[str, float] = field(default_factory=dict)
    files: tuple[ResultFile, ...] = ()
    error: str | None = None

    @property
    def is_sound(self) -> bool:
        """Whether the scene was done, and all of it could be read."""
        return self.state is not State.FAILED and not self.broken

    @property
    def skipped_share(self) -> float:
        """Share of windows (0-1) that have no class."""
        return self.skipped / max(self.windows + self.skipped, 1)

    def kept(self) -> "SceneOutcome":
        """Return it as the outcome of a later run that found it done."""
        return replace(self, state=State.KEPT)

    def to_json(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return asdict(self)

    @classmethod
    def from_json(cls, known: dict[str, Any]) -> "SceneOutcome":
        """Return what `to_json` was called on."""
        files = tuple(ResultFile(**file) for file in known["files"])
        return cls(**{**known, "state": State(known["state"]), "files": files})
