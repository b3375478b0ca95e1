"""Settings of what follows training; free of ONNX, which a machine that only fits may not have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Quantisation:
    """How the INT8 file is made, and what it may cost.

    Attributes:
        enabled: whether it is made at all.
        tiles: of the train split, about, that activations' ranges are taken from; each shows some set of its bands.
        method: how ranges are chosen: the whole range (minmax), all but `percentile`, or by least loss of information
            (entropy).
        percentile: share (percent) of an activation's values that its range holds, for that method.
        most_lost: the most accuracy (share 0-1) that may be lost against fp32 on the validation split.
    """

    enabled: bool = True
    tiles: int = 512
    method: Literal["minmax", "percentile", "entropy"] = "percentile"
    percentile: float = 99.99
    most_lost: float = 0.003

    def __post_init__(self) -> None:
        if self.tiles < 1:
            raise ValueError("quantisation.tiles is a whole number of 1 or more")
        if not 0 < self.percentile <= 100:
            raise ValueError("quantisation.percentile lies above 0 and is 100 at most")


def differing(settings: Sequence[Mapping[str, object]]) -> list[str]:
    """Return the names of settings, one mapping a run, that do not have the same value in all runs."""
    first, *others = settings
    return [
        name for name in sorted(set().union(*settings)) if any(each.get(name) != first.get(name) for each in others)
    ]
