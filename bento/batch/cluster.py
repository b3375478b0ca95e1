"""Scenes spread over a Ray cluster: the same work, the same manifest and the same bytes as on one machine.

All nodes must see the scenes, the model and the folder of results under the same paths (a shared file system). The run
itself stays where it was started: it alone moves results to their place and writes the manifest. A small scene is one
task; of a large one, blocks of its rows are tasks, and one more task writes what they answer. A task whose worker or
node is lost is done again by Ray elsewhere; each attempt writes to a folder of its own.
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

from tilewise.bento.batch.processes import InFlight
from tilewise.bento.batch.worker import (
    Begun,
    Done,
    Task,
    WorkPlan,
    classify_whole,
    guarded,
    look,
    scene_info_of,
    write_scene,
)
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.window_grid import SceneInfo
from tilewise.bento.inference.windows import Block, WindowAnswer, classify, strip_count
from tilewise.bento.results.writer import ModelFacts
from tilewise.datasets.core.errors import SceneError, TilewiseError, UnreadableImageError
from tilewise.datasets.scenes import BrokenBlock

_RETRIES = 4  # of a task whose worker or node was lost
BLOCK_STRIPS = 32  # strips of windows in a task: 2,048 rows, some ten seconds of work
_AHEAD = 2  # scenes in work for each core of the cluster
_LOOK = 0.5  # seconds
_SECONDS_TO_ANSWER = 10.0


def work_on_cluster(
    tasks: Iterator[Task],
    plan: WorkPlan,
    address: str | None,
    report: InFlight = lambda share, windows: None,
    block_strips: int = BLOCK_STRIPS,
) -> Iterator[tuple[Task, Done]]:
    """Work on scenes by the cluster at `address`; answers come in the order in which they are ready.

    Args:
        tasks: the scenes.
        plan: of the run; its folders and its model are seen by all nodes.
        address: as `ray.init` takes it; None: the cluster that runs here, or one of this machine alone.
        report: told now and then; a cluster's tasks do not say how far they are.
        block_strips: scenes with more strips of windows than this are worked on in blocks of so many.

    Raises:
        TilewiseError: Ray is not installed, or the cluster cannot be reached.
    """
    ray, is_mine = _connect(address)
    on_cluster = _Remote(ray, plan, block_strips)
    running: dict[Any, Task] = {}
    try:
        while True:
            room = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)) // plan.threads)
            while len(running) < room and (task := next(tasks, None)):
                running[on_cluster.begin(task)] = task
            if not running:
                return
            ready, _ = ray.wait(list(running), num_returns=1, timeout=_LOOK)
            report(0.0, 0)
            for reference in ready:
                task = running.pop(reference)
                answer = on_cluster.answer(reference, task)
                if isinstance(answer, Done):
                    yield task, answer
                else:
                    running[on_cluster.part(answer)] = task
    finally:
        for reference in running:  # nobody waits for them any more
            ray.cancel(reference)
        if is_mine:
            ray.shutdown()


@dataclass(frozen=True, slots=True)
class _Large:
    """A scene that is worth parting: nothing of it is classified yet."""

    begun: Begun
    scene_info: SceneInfo
    strips: int


@dataclass(frozen=True, slots=True)
class _Packed:
    """A block whose maps are packed for the way: neighbours are alike, so they shrink a hundredfold."""

    row: int
    maps: tuple[tuple[bytes, tuple[int, ...], str] | None, ...]
    windows: tuple[WindowAnswer, ...]


@dataclass(frozen=True, slots=True)
class _Rows:
    """What a task answers for some strips: their blocks, and which blocks of the files could not be decoded."""

    blocks: list[_Packed]
    broken: tuple[BrokenBlock, ...]


class _Remote:
    """The tasks as Ray has them."""

    def __init__(self, ray: Any, plan: WorkPlan, block_strips: int) -> None:
        self._ray, self._plan, self._strips = ray, plan, block_strips
        options = {"num_cpus": plan.threads, "max_retries": _RETRIES}
        self._first = ray.remote(**options)(_first_look)
        self._rows = ray.remote(**options)(_answer_rows)
        # Writing waits most of the time, while the cores classify.
        self._write = ray.remote(num_cpus=0.1, max_retries=_RETRIES)(_write_parted)

    def begin(self, task: Task) -> Any:
        """Begin with a scene."""
        return self._first.remote(task, self._plan, self._strips)

    def part(self, large: _Large) -> Any:
        """Have a large scene's rows answered, and written by one more task as they come."""
        parts = [(first, first + self._strips) for first in range(0, large.strips, self._strips)]
        rows = [self._rows.remote(large.begun.task, self._plan, part) for part in parts]
        return self._write.remote(large, rows)

    def answer(self, reference: Any, task: Task) -> Done | _Large:
        """Return what became of a task; one that Ray gives up is a failure of its scene alone."""
        try:
            answer: Done | _Large = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            first = str(error).strip().splitlines()
            return task.failed(f"the cluster gave it up after {_RETRIES} new attempts: {first[0] if first else error}")
        return answer


def _connect(address: str | None) -> tuple[Any, bool]:
    """Return Ray, and whether it is to be shut down at the end: not where the caller has connected it."""
    try:
        import ray
    except ImportError as error:
        raise TilewiseError("the cluster engine needs Ray; pip install 'tilewise[cluster]'") from error
    if ray.is_initialized():
        return ray, False
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        where = address or "this machine"
        raise TilewiseError(f"{where}: no Ray cluster answers; start one with `ray start --head`") from error
    return ray, True


def _knock(address: str | None) -> None:
    """Raise OSError where nothing listens at HOST:PORT: Ray itself tries for minutes, and ends the process."""
    host, colon, port = (address or "").rpartition("://")[2].rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_ANSWER).close()


@lru_cache(maxsize=1)
def _engine(plan: WorkPlan) -> Engine:
    """Return this worker's model, loaded by its first task and kept for the next ones."""
    return plan.load()


def _first_look(task: Task, plan: WorkPlan, block_strips: int) -> Done | _Large:
    """Work on a small scene; of a large one only tell how large it is."""

    def work() -> Done | _Large:
        begun = look(task, plan)
        if isinstance(begun, Done):
            return begun
        with task.source.open() as scene:
            strips = strip_count(scene, plan.grid)
            if strips <= block_strips:
                return classify_whole(begun, _engine(plan), scene)
            answer = classify(_engine(plan), scene, plan.grid)  # nothing of it is asked for but its grid
            return _Large(begun, scene_info_of(task, scene, answer), strips)

    return guarded(task, plan, work)


def _answer_rows(task: Task, plan: WorkPlan, strips: tuple[int, int]) -> _Rows | Done:
    """Return the maps of some strips of a scene, and which blocks of its files could not be decoded."""

    def work() -> _Rows:
        with task.source.open() as scene:
            answered = classify(_engine(plan), scene, plan.grid, workers=plan.threads, rows=strips)
            blocks: list[_Packed] = []
            try:
                with closing(answered.iter_blocks()) as answers:
                    blocks.extend(_pack(block) for block in answers)
            except UnreadableImageError:
                if not (blocks and scene.broken):  # none of these rows can be decoded; others perhaps can
                    raise
            return _Rows(blocks, scene.broken_blocks)

    return guarded(task, plan, work)


def _write_parted(large: _Large, rows: list[Any]) -> Done:
    """Write a scene whose rows other tasks answer."""
    import ray

    begun = large.begun
    broken: set[BrokenBlock] = set()

    def blocks() -> Iterator[Block]:
        answered = False
        for reference in rows:
            answer = ray.get(reference)
            if isinstance(answer, Done):
                raise SceneError(str(answer.outcome.error).removeprefix(f"{begun.task.place}: "))
            broken.update(answer.broken)
            for block in map(_unpack, answer.blocks):
                answered |= any(window.probabilities is not None for window in block.windows)
                yield block
        if broken and not answered:
            raise UnreadableImageError(
                f"none of its windows can be classified, and {len(broken)} blocks are truncated or corrupt; "
                "fetch the files again"
            )

    def work() -> Done:
        engine = _engine(begun.plan)
        facts = ModelFacts(engine.metadata, engine.sha256, begun.plan.model)
        return write_scene(begun, facts, large.scene_info, blocks(), lambda: len(broken))

    return guarded(begun.task, begun.plan, work)


def _pack(block: Block) -> _Packed:
    maps = (block.class_map, block.confidence, block.outlier, block.probabilities)
    return _Packed(block.row, tuple(map(_pack_map, maps)), block.windows)


def _pack_map(pixels: npt.NDArray[Any] | None) -> tuple[bytes, tuple[int, ...], str] | None:
    if pixels is None:
        return None
    return zlib.compress(np.ascontiguousarray(pixels).tobytes(), 1), pixels.shape, pixels.dtype.str


def _unpack(packed: _Packed) -> Block:
    class_map, confidence, outlier, probabilities = (
        None if made is None else np.frombuffer(zlib.decompress(made[0]), made[2]).reshape(made[1])
        for made in packed.maps
    )
    assert class_map is not None and confidence is not None and outlier is not None  # noqa: PT018, S101 - as packed
    return Block(packed.row, class_map, confidence, outlier, probabilities, packed.windows)
