"""Interim: the seam's shapes over today's readers, until datasets.scenes and bento.windows are there."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from rasterio.windows import Window

from bento.engine import Engine
from bento.scene import NO_CLASS, WindowAnswer, _classify_strip, _paint, starts
from datasets.scenes import Scene
from datasets.tile import valid_mask


@dataclass(frozen=True)
class GridOptions:
    stride: int = 64
    least_valid: float = 0.5
    cell: int = 1
    keep_probabilities: bool = False


@dataclass(frozen=True)
class Block:
    row: int
    class_map: Any
    confidence: Any
    outlier: Any
    probabilities: Any
    windows: Any


class SceneAnswer:
    def __init__(self, engine: Engine, scene: Scene, grid: GridOptions, rows: Any) -> None:
        self.a = (engine, scene, grid, rows)
        self.place, self.height, self.width = scene.place, scene.height, scene.width

    def iter_blocks(self) -> Iterator[Block]:
        engine, scene, grid, rows = self.a
        size = 64
        first = 0
        every = starts(scene.height, size)
        for number, row in enumerate(every):
            height = min(size, scene.height)
            top = 0 if number == 0 else every[number - 1] + size
            if rows and not rows[0] <= number < rows[1]:
                continue
            strip = scene.read(Window(0, row, scene.width, height))
            valid = valid_mask(strip, scene.bands)
            answers = list(_classify_strip(engine, strip, valid, row, grid.least_valid))
            m = np.full((height, scene.width), NO_CLASS, np.uint8)
            c = np.full((height, scene.width), np.nan, np.float32)
            for a in answers:
                before = m.copy()
                local = WindowAnswer(0, a.column, a.height, a.width, a.valid_share, a.probabilities)
                _paint(m, valid, local, 0)
                c[m != before] = np.nan if a.probabilities is None else a.probabilities.max()
            cut = slice(top - row, None)
            yield Block(top, m[cut], c[cut], c[cut], None, answers)


def strip_count(scene: Scene, grid: GridOptions) -> int:
    return len(starts(scene.height, 64))


def classify(
    engine: Engine, scene: Scene, grid: GridOptions, progress: Any = None, workers: int = 0, rows: Any = None
) -> SceneAnswer:
    return SceneAnswer(engine, scene, grid, rows)
