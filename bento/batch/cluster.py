"""Classify scenes on a Ray cluster: the same work, the same manifest and the same bytes as on one machine.

All nodes must see the scenes, the model and the folder of results under the same paths (a shared file
system). The run stays on the machine where it was started: it alone moves results and writes the manifest. A
small scene is one Ray task; a large one is split into tasks of some rows each, and one more task writes their
answers. Ray repeats a task whose worker or node is lost; each attempt writes to a folder of its own.
"""

import logging
import socket
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewise.bento.batch.processes import WorkReport
from tilewise.bento.batch.worker import (
    FinishedScene,
    SceneTask,
    StartedScene,
    WorkPlan,
    catch_failures,
    classify_and_write,
    scene_info_of,
    start_scene,
    write_scene,
)
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.window_grid import SceneInfo
from tilewise.bento.inference.windows import SceneBlock, WindowAnswer, classify, strip_count
from tilewise.bento.results.writer import ModelFacts
from tilewise.datasets.core.errors import SceneError, TilewiseError, UnreadableImageError
from tilewise.datasets.scenes import BrokenBlock

_RETRIES = 4  # of a task whose worker or node was lost
BLOCK_STRIPS = 32  # strips of windows in a task: 2,048 rows, some ten seconds of work
_AHEAD = 2  # scenes in progress for each core of the cluster
_SECONDS_BETWEEN_REPORTS = 0.5
_SECONDS_TO_ANSWER = 10.0


def work_on_cluster(
    tasks: Iterator[SceneTask],
    plan: WorkPlan,
    address: str | None,
    report: WorkReport = lambda scenes, windows: None,
    block_strips: int = BLOCK_STRIPS,
) -> Iterator[tuple[SceneTask, FinishedScene]]:
    """Classify scenes on the cluster at `address`; yield them in the order in which they are finished.

    Args:
        tasks: the scenes.
        plan: of the run; all nodes see its folders and its model.
        address: as `ray.init` takes it; None: the cluster on this machine, else a new one of this machine
            alone.
        report: called now and then; tasks on a cluster do not report their progress.
        block_strips: scenes with more strips of windows than this are split into tasks of so many strips.

    Raises:
        TilewiseError: Ray is not installed, or the cluster cannot be reached.
    """
    ray, is_mine = _connect(address)
    on_cluster = _Remote(ray, plan, block_strips)
    running: dict[Any, SceneTask] = {}
    try:
        while True:
            limit = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)) // plan.threads)
            while len(running) < limit and (task := next(tasks, None)):
                running[on_cluster.begin(task)] = task
            if not running:
                return
            ready, _ = ray.wait(list(running), num_returns=1, timeout=_SECONDS_BETWEEN_REPORTS)
            report(0.0, 0)
            for reference in ready:
                task = running.pop(reference)
                answer = on_cluster.answer(reference, task)
                if isinstance(answer, FinishedScene):
                    yield task, answer
                else:
                    running[on_cluster.split(answer)] = task
    finally:
        for reference in running:  # their results are no longer needed
            ray.cancel(reference)
        if is_mine:
            ray.shutdown()


@dataclass(frozen=True, slots=True)
class _LargeScene:
    """A scene that is split into several tasks; nothing of it is classified yet."""

    started: StartedScene
    scene_info: SceneInfo
    strips: int


@dataclass(frozen=True, slots=True)
class _PackedBlock:
    """A block whose maps are compressed for the network: they shrink about a hundredfold."""

    row: int
    maps: tuple[tuple[bytes, tuple[int, ...], str] | None, ...]
    windows: tuple[WindowAnswer, ...]


@dataclass(frozen=True, slots=True)
class _ClassifiedStrips:
    """The result of a task for some strips: their blocks, and the file blocks that could not be decoded."""

    blocks: list[_PackedBlock]
    broken: tuple[BrokenBlock, ...]


class _Remote:
    """The remote functions of the run."""

    def __init__(self, ray: Any, plan: WorkPlan, block_strips: int) -> None:
        self._ray, self._plan, self._block_strips = ray, plan, block_strips
        options = {"num_cpus": plan.threads, "max_retries": _RETRIES}
        self._begin = ray.remote(**options)(_classify_or_measure)
        self._strips = ray.remote(**options)(_classify_strips)
        # Writing waits most of the time, while the cores classify.
        self._write = ray.remote(num_cpus=0.1, max_retries=_RETRIES)(_write_split)

    def begin(self, task: SceneTask) -> Any:
        """Start with a scene."""
        return self._begin.remote(task, self._plan, self._block_strips)

    def split(self, large: _LargeScene) -> Any:
        """Classify the strips of a large scene in several tasks, and write them in one more."""
        step = self._block_strips
        parts = [(first, first + step) for first in range(0, large.strips, step)]
        strips = [self._strips.remote(large.started.task, self._plan, part) for part in parts]
        return self._write.remote(large, strips)

    def answer(self, reference: Any, task: SceneTask) -> FinishedScene | _LargeScene:
        """Return the result of a Ray task; one that Ray gives up fails its scene alone."""
        try:
            answer: FinishedScene | _LargeScene = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            first = str(error).strip().splitlines()
            return task.failed(
                f"the cluster gave up after {_RETRIES} new attempts: {first[0] if first else error}"
            )
        return answer


def _connect(address: str | None) -> tuple[Any, bool]:
    """Return Ray, and whether to shut it down at the end: not where the caller had connected it."""
    try:
        import ray
    except ImportError as error:
        raise TilewiseError("the cluster engine needs Ray; pip install 'tilewise[cluster]'") from error
    if ray.is_initialized():
        return ray, False
    try:
        _check_reachable(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        where = address or "this machine"
        raise TilewiseError(f"{where}: no Ray cluster answers; start one with `ray start --head`") from error
    return ray, True


def _check_reachable(address: str | None) -> None:
    """Raise OSError where nothing listens at HOST:PORT: Ray would try for minutes, then end the process."""
    host, colon, port = (address or "").rpartition("://")[2].rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_ANSWER).close()


@lru_cache(maxsize=1)
def _engine(plan: WorkPlan) -> Engine:
    """Return this worker's model, loaded by its first task and kept for later ones."""
    return plan.load()


def _classify_or_measure(task: SceneTask, plan: WorkPlan, block_strips: int) -> FinishedScene | _LargeScene:
    """Classify a small scene; of a large one return only its size."""

    def work() -> FinishedScene | _LargeScene:
        started = start_scene(task, plan)
        if isinstance(started, FinishedScene):
            return started
        with task.source.open() as scene:
            strips = strip_count(scene, plan.grid)
            if strips <= block_strips:
                return classify_and_write(started, _engine(plan), scene)
            answer = classify(_engine(plan), scene, plan.grid)  # for its grid alone: no block is taken
            return _LargeScene(started, scene_info_of(task, scene, answer), strips)

    return catch_failures(task, plan, work)


def _classify_strips(
    task: SceneTask, plan: WorkPlan, strips: tuple[int, int]
) -> _ClassifiedStrips | FinishedScene:
    """Return the maps of some strips of a scene, and the file blocks that could not be decoded."""

    def work() -> _ClassifiedStrips:
        with task.source.open() as scene:
            classification = classify(_engine(plan), scene, plan.grid, workers=plan.threads, rows=strips)
            blocks: list[_PackedBlock] = []
            try:
                with closing(classification.iter_blocks()) as answers:
                    blocks.extend(_pack(block) for block in answers)
            except UnreadableImageError:
                if not (blocks and scene.broken):  # these rows cannot be decoded; others perhaps can
                    raise
            return _ClassifiedStrips(blocks, scene.broken_blocks)

    return catch_failures(task, plan, work)


def _write_split(large: _LargeScene, strips: list[Any]) -> FinishedScene:
    """Write a scene whose strips other tasks classify."""
    import ray

    started = large.started
    broken: set[BrokenBlock] = set()

    def blocks() -> Iterator[SceneBlock]:
        answered = False
        for reference in strips:
            answer = ray.get(reference)
            if isinstance(answer, FinishedScene):
                raise SceneError(str(answer.outcome.error).removeprefix(f"{started.task.location}: "))
            broken.update(answer.broken)
            for block in map(_unpack, answer.blocks):
                answered |= any(window.probabilities is not None for window in block.windows)
                yield block
        if broken and not answered:
            raise UnreadableImageError(
                f"none of its windows can be classified, and {len(broken)} blocks are truncated or corrupt; "
                "fetch the files again"
            )

    def work() -> FinishedScene:
        engine = _engine(started.plan)
        facts = ModelFacts(engine.metadata, engine.sha256, started.plan.model)
        return write_scene(started, facts, large.scene_info, blocks(), lambda: len(broken))

    return catch_failures(started.task, started.plan, work)


def _pack(block: SceneBlock) -> _PackedBlock:
    maps = (block.class_map, block.probability, block.outlier, block.probabilities, block.colours)
    return _PackedBlock(block.row, tuple(map(_pack_map, maps)), block.windows)


def _pack_map(pixels: npt.NDArray[Any] | None) -> tuple[bytes, tuple[int, ...], str] | None:
    if pixels is None:
        return None
    return zlib.compress(np.ascontiguousarray(pixels).tobytes(), 1), pixels.shape, pixels.dtype.str


def _unpack(packed: _PackedBlock) -> SceneBlock:
    class_map, probability, outlier, probabilities, colours = (
        None if made is None else np.frombuffer(zlib.decompress(made[0]), made[2]).reshape(made[1])
        for made in packed.maps
    )
    assert class_map is not None and probability is not None and outlier is not None  # noqa: PT018, S101 - as packed
    return SceneBlock(packed.row, class_map, probability, outlier, probabilities, packed.windows, colours)
