"""Jobs of many callers are worked on together, and everyone gets their own results, in order."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial

import pytest
from scenarios import run

from tilewise.bento.serving.batcher import Batcher, ClosedError

WAIT_S = 10


class Worker:
    """Doubles numbers; can be held back, and remembers the batches it got."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, jobs: list[int]) -> list[int]:
        self.batches.append(jobs)
        assert self.go.wait(WAIT_S)
        if 666 in jobs:
            raise ValueError("a poisoned batch")
        return [2 * job for job in jobs]


@contextmanager
def batcher_of(worker: Worker, limit: int = 8, **options: Callable[..., None]) -> Iterator[Batcher[int, int]]:
    batcher = Batcher(worker, limit, **options)
    try:
        yield batcher
    finally:
        worker.go.set()
        batcher.close()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(WAIT_S * 200):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never happened")


def test_a_lone_job_is_worked_on_at_once_and_alone() -> None:
    worker = Worker()

    async def scenario() -> None:
        with batcher_of(worker) as batcher:
            assert await batcher.submit([21]) == [42]

    run(scenario)
    assert worker.batches == [[21]]


def test_a_lone_job_is_done_without_the_thread_where_that_is_allowed_and_several_are_not() -> None:
    threads: dict[tuple[int, ...], str] = {}
    worker = Worker()

    def work(jobs: list[int]) -> list[int]:
        threads[tuple(jobs)] = threading.current_thread().name
        return worker(jobs)

    async def scenario(lone_in_loop: bool) -> None:
        batcher = Batcher(work, 8, lone_in_loop=lone_in_loop)
        assert await batcher.submit([21]) == [42]
        assert await batcher.submit([5, 7]) == [10, 14]
        assert await asyncio.gather(batcher.submit([1]), batcher.submit([3])) == [[2], [6]]
        while batcher._busy:  # its thread answers before it is at rest
            await asyncio.sleep(0.001)
        with pytest.raises(ValueError, match="poisoned"):
            await batcher.submit([666])
        assert await batcher.submit([22]) == [44]
        batcher.close()

    run(partial(scenario, True))
    lone = {jobs for jobs, name in threads.items() if name != "batcher"}
    assert lone == {(21,), (666,), (22,)}
    assert threads.keys() == {(21,), (5, 7), (1, 3), (666,), (22,)}
    run(partial(scenario, False))
    assert set(threads.values()) == {"batcher"}


def test_background_work_that_comes_while_the_event_loop_works_waits_for_it() -> None:
    """Both use what belongs to the batch in progress."""
    order: list[str] = []
    background: list[threading.Thread] = []

    def work(jobs: list[int]) -> list[int]:
        portion = partial(batcher.run_between, lambda: order.append("background"))
        background.append(threading.Thread(target=portion))
        background[-1].start()
        time.sleep(0.05)
        order.append("job")
        return jobs

    async def scenario() -> None:
        assert await batcher.submit([1]) == [1]
        await asyncio.to_thread(background[0].join, WAIT_S)

    with closing(Batcher(work, 8, lone_in_loop=True)) as batcher:
        run(scenario)
    assert order == ["job", "background"]


def test_what_arrives_while_a_batch_is_worked_on_makes_the_next_batch() -> None:
    worker = Worker()

    async def scenario() -> None:
        with batcher_of(worker) as batcher:
            worker.go.clear()
            first = asyncio.create_task(batcher.submit([1]))
            await until(lambda: worker.batches == [[1]])
            rest = [asyncio.create_task(batcher.submit([n])) for n in (2, 3, 4)]
            await until(lambda: batcher.waiting == 3)
            worker.go.set()
            assert await first == [2]
            assert await asyncio.gather(*rest) == [[4], [6], [8]]

    run(scenario)
    assert worker.batches == [[1], [2, 3, 4]]


def test_a_large_order_is_worked_on_in_several_batches_and_answered_in_order() -> None:
    worker = Worker()

    async def scenario() -> None:
        with batcher_of(worker, limit=8) as batcher:
            assert await batcher.submit(list(range(20))) == [2 * n for n in range(20)]

    run(scenario)
    assert [len(batch) for batch in worker.batches] == [8, 8, 4]


def test_a_batch_that_fails_fails_every_caller_in_it() -> None:
    worker = Worker()

    async def scenario() -> None:
        with batcher_of(worker) as batcher:
            worker.go.clear()
            first = asyncio.create_task(batcher.submit([1]))
            await until(lambda: worker.batches == [[1]])
            callers = [asyncio.create_task(batcher.submit([job])) for job in (2, 666, 3)]
            await until(lambda: batcher.waiting == 3)
            worker.go.set()
            assert await first == [2]
            outcomes = await asyncio.wait_for(asyncio.gather(*callers, return_exceptions=True), WAIT_S)
            assert [type(outcome) for outcome in outcomes] == [ValueError] * 3
            assert await batcher.submit([4]) == [8]

    run(scenario)
    assert worker.batches == [[1], [2, 666, 3], [4]]


@pytest.mark.parametrize("broken", [lambda jobs: [], lambda jobs: [*jobs, 0]])
def test_no_results_or_too_many_are_an_error_and_nobody_waits(
    broken: Callable[[list[int]], list[int]],
) -> None:
    async def scenario() -> None:
        batcher: Batcher[int, int] = Batcher(lambda jobs: broken(jobs) if 666 in jobs else jobs, 8)
        try:
            with pytest.raises(RuntimeError, match="results of 2 jobs"):
                await batcher.submit([1, 666])
            assert await batcher.submit([3]) == [3]
        finally:
            batcher.close()

    run(scenario)


async def held_back(
    worker: Worker, batcher: Batcher[int, int], *requests: tuple[str, list[int]]
) -> list[list[int]]:
    """Return the results of requests that all wait while a first batch is worked on."""
    worker.go.clear()
    before = len(worker.batches)
    first = asyncio.create_task(batcher.submit([0]))
    await until(lambda: len(worker.batches) == before + 1)
    calls = []
    for caller, jobs in requests:
        calls.append(asyncio.create_task(batcher.submit(jobs, caller)))
        await asyncio.sleep(0)
    worker.go.set()
    await first
    return await asyncio.gather(*calls)


def test_callers_take_turns_job_by_job_and_so_do_the_requests_of_one() -> None:
    worker = Worker()

    async def scenario() -> None:
        with batcher_of(worker, limit=4) as batcher:
            results = await held_back(
                worker, batcher, ("many", [10, 11, 12, 13]), ("many", [20, 21]), ("one", [30])
            )
            assert results == [[20, 22, 24, 26], [40, 42], [60]]

    run(scenario)
    assert worker.batches == [[0], [10, 30, 20, 11], [21, 12, 13]]


def test_a_batch_that_fails_fails_its_callers_and_nobody_else() -> None:
    worker = Worker()

    async def scenario() -> None:
        with batcher_of(worker, limit=4) as batcher:
            with pytest.raises(ValueError, match="poisoned"):
                await batcher.submit([1, 2, 3, 666, 5, 6, 7])
            assert batcher.waiting == 0
            with pytest.raises(ValueError, match="poisoned"):
                await batcher.submit([1, 666, *range(8)])
            assert batcher.waiting == 0
            assert await batcher.submit([5]) == [10]

    run(scenario)
    assert worker.batches == [[1, 2, 3, 666], [1, 666, 0, 1], [5]]


def test_the_jobs_of_a_caller_who_has_gone_are_not_worked_on() -> None:
    worker = Worker()

    async def scenario() -> None:
        with batcher_of(worker) as batcher:
            worker.go.clear()
            first = asyncio.create_task(batcher.submit([1]))
            await until(lambda: len(worker.batches) == 1)
            gone = asyncio.create_task(batcher.submit([2]))
            stays = asyncio.create_task(batcher.submit([3]))
            await until(lambda: batcher.waiting == 2)
            gone.cancel()
            await asyncio.sleep(0)
            worker.go.set()
            assert await first == [2]
            assert await stays == [6]

    run(scenario)
    assert worker.batches == [[1], [3]]


def test_closing_fails_those_who_wait_and_refuses_those_who_come() -> None:
    worker = Worker()

    async def scenario() -> None:
        with batcher_of(worker) as batcher:
            worker.go.clear()
            first = asyncio.create_task(batcher.submit([1]))
            await until(lambda: len(worker.batches) == 1)
            waiting = asyncio.create_task(batcher.submit([2]))
            await until(lambda: batcher.waiting == 1)
            threading.Timer(0.05, worker.go.set).start()
            await asyncio.to_thread(batcher.close)
            assert await first == [2]
            with pytest.raises(ClosedError):
                await waiting
            with pytest.raises(ClosedError):
                await batcher.submit([3])

    run(scenario)


def test_background_work_is_done_at_once_where_nobody_waits() -> None:
    with batcher_of(Worker()) as batcher:
        assert batcher.run_between(lambda: threading.current_thread().name) == "batcher"
        with pytest.raises(ZeroDivisionError):
            batcher.run_between(lambda: 1 / 0)
    with pytest.raises(ClosedError):
        batcher.run_between(lambda: 1)


def test_background_work_lets_jobs_go_first_but_is_not_put_off_for_ever() -> None:
    worker = Worker()
    done: list[str] = []

    async def keep_it_busy(batcher: Batcher[int, int], number: int) -> None:
        while "second" not in done:
            assert await batcher.submit([number]) == [2 * number]

    async def scenario() -> None:
        with batcher_of(worker, limit=1) as batcher:
            worker.go.clear()
            jobs = [asyncio.create_task(batcher.submit([number])) for number in range(3)]
            await until(lambda: len(worker.batches) == 1)
            batcher._last_background = time.monotonic()  # as if such work had just had its turn
            aside = asyncio.create_task(
                asyncio.to_thread(
                    batcher.run_between, lambda: done.append(f"{len(worker.batches)} batches before")
                )
            )
            await until(lambda: bool(batcher._background))
            worker.go.set()
            await asyncio.gather(*jobs, aside)
            assert done == ["3 batches before"]
            busy = [asyncio.create_task(keep_it_busy(batcher, number)) for number in range(4)]
            await asyncio.to_thread(batcher.run_between, lambda: done.append("second"))
            await asyncio.gather(*busy)

    run(scenario)


def test_nothing_asked_is_answered_with_nothing() -> None:
    worker = Worker()

    async def scenario() -> None:
        with batcher_of(worker) as batcher:
            assert await batcher.submit([]) == []

    run(scenario)
    assert worker.batches == []


def test_observers_get_the_sizes_and_cannot_stop_the_work() -> None:
    worker, seen, looked = Worker(), [], []

    def observe(size: int, waiting: int) -> None:
        seen.append((size, waiting))
        raise RuntimeError("the observer failed before the batch")

    def after() -> None:
        looked.append(1)
        raise RuntimeError("the observer failed after the batch")

    async def scenario() -> None:
        with batcher_of(worker, observe=observe, after=after) as batcher:
            assert await batcher.submit([1, 2]) == [2, 4]
            assert await batcher.submit([3]) == [6]

    run(scenario)
    assert seen == [(2, 0), (1, 0)]
    assert len(looked) == 2


def test_many_callers_at_once_all_get_their_own_results() -> None:
    worker = Worker()

    async def scenario() -> None:
        with batcher_of(worker, limit=16) as batcher:
            found = await asyncio.gather(*(batcher.submit([n, n + 1]) for n in range(500)))
            assert found == [[2 * n, 2 * n + 2] for n in range(500)]

    run(scenario)
    assert max(len(batch) for batch in worker.batches) == 16


def test_a_caller_whose_loop_is_gone_does_not_end_the_thread() -> None:
    worker = Worker()
    with batcher_of(worker) as batcher:
        worker.go.clear()
        gone = asyncio.new_event_loop()
        task = gone.create_task(batcher.submit([1]))
        gone.run_until_complete(until(lambda: bool(worker.batches)))
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        gone.close()
        worker.go.set()

        async def scenario() -> None:
            assert await batcher.submit([21]) == [42]

        run(scenario)


def test_the_jobs_of_a_caller_who_has_gone_no_longer_wait() -> None:
    worker = Worker()

    async def scenario() -> None:
        with batcher_of(worker, limit=2) as batcher:
            worker.go.clear()
            first = asyncio.create_task(batcher.submit([1]))
            await until(lambda: len(worker.batches) == 1)
            gone = asyncio.create_task(batcher.submit([2, 3, 4, 5, 6]))
            await until(lambda: batcher.waiting == 5)
            gone.cancel()
            await asyncio.sleep(0)
            stays = asyncio.create_task(batcher.submit([7]))
            worker.go.set()
            assert (await first, await stays) == ([2], [14])
            assert batcher.waiting == 0

    run(scenario)
    assert worker.batches == [[1], [7]]


def test_background_work_has_its_turn_while_jobs_never_cease() -> None:
    waited: list[int] = []

    def work(jobs: list[int]) -> list[int]:
        time.sleep(0.002)
        return jobs

    async def scenario() -> None:
        async def load() -> None:
            while not waited:
                await batcher.submit([1])

        loads = [asyncio.create_task(load()) for _ in range(50)]
        await until(lambda: batcher.waiting > 10)
        portion = partial(batcher.run_between, lambda: waited.append(batcher.waiting))
        background = threading.Thread(target=portion)
        background.start()
        try:
            await until(lambda: bool(waited))
        finally:
            waited.append(0)
            await asyncio.gather(*loads)
            background.join(WAIT_S)

    with closing(Batcher(work, 1)) as batcher:
        run(scenario)
    assert waited[0] > 10


def test_a_caller_who_goes_half_way_leaves_nothing_that_waits() -> None:
    worker = Worker()

    async def scenario() -> None:
        with batcher_of(worker, limit=2) as batcher:
            worker.go.clear()
            request = asyncio.create_task(batcher.submit(list(range(6))))
            await until(lambda: len(worker.batches) == 1)
            assert batcher.waiting == 4
            request.cancel()
            await asyncio.sleep(0)
            worker.go.set()
            assert await batcher.submit([7]) == [14]
            assert batcher.waiting == 0

    run(scenario)
    assert worker.batches == [[0, 1], [7]]
