"""The ledger of scenes: kept by several processes together, which may die at any time."""

import multiprocessing
import os
import signal
import sqlite3
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tilewise.bento.serving.task_runner import StoppedError, TaskRunner
from tilewise.bento.serving.task_store import FullError, Ledger, Limits, State, Task, owner_of
from tilewise.datasets.core.errors import UnreadableImageError

ME, YOU = owner_of("me"), owner_of("you")
WAIT_S = 15


def ledger_in(folder: Path, **limits: float) -> Ledger:
    return Ledger(folder / "tasks", replace(Limits(), **limits))  # type: ignore[arg-type]


def held(ledger: Ledger, owner: str = ME, content: bytes = b"II*\0") -> str:
    task_id = ledger.hold(owner, len(content))
    ledger.source(task_id).write_bytes(content)
    return task_id


def submitted(ledger: Ledger, owner: str = ME) -> str:
    task_id = held(ledger, owner)
    ledger.submit(task_id, {"name": "scene.tif"}, windows=7)
    return task_id


def state_of(ledger: Ledger, task_id: str, owner: str = ME) -> State | None:
    task = ledger.find(task_id, owner)
    return task and task.state


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def kill(process: multiprocessing.process.BaseProcess) -> None:
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join(WAIT_S)


def take_and_hang(folder: Path, ready: Path) -> None:
    """What a process does that dies at work: takes a task, holds another scene, and stays."""
    ledger = Ledger(folder / "tasks", Limits())
    task, own = ledger.take(), held(ledger)
    ready.write_text(f"{task.id if task else ''} {own}")
    time.sleep(600)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return ledger_in(tmp_path)


# One process after another.


def test_a_task_goes_from_waiting_to_done_and_its_scene_goes(ledger: Ledger, tmp_path: Path) -> None:
    task_id = submitted(ledger)
    other = ledger_in(tmp_path)
    found = other.find(task_id, ME)
    assert found is not None
    assert (found.state, found.windows, found.progress, found.finished) == (State.WAITING, 7, 0, None)
    taken = other.take()
    assert taken is not None
    assert (taken.id, taken.state, taken.asked) == (task_id, State.RUNNING, {"name": "scene.tif"})
    assert ledger.take() is None, "nobody else gets it"
    assert other.advance(task_id, 0.25)
    assert ledger.find(task_id, ME).progress == 0.25  # type: ignore[union-attr]
    assert not ledger.advance(task_id, 0.5), "it is not this process's"
    other.result(task_id, "a.result").write_bytes(b"result")
    assert other.finish(task_id)
    assert state_of(ledger, task_id) is State.DONE
    assert ledger.result(task_id, "a.result").read_bytes() == b"result"
    assert not ledger.source(task_id).exists()


def test_tasks_are_taken_in_the_order_in_which_they_came_and_told_how_many_are_ahead(ledger: Ledger) -> None:
    ids = [submitted(ledger) for _ in range(3)]
    tasks = [ledger.find(task_id, ME) for task_id in ids]
    assert [ledger.ahead(task) for task in tasks if task] == [0, 1, 2]
    assert [task.id for task in (ledger.take(), ledger.take(), ledger.take()) if task] == ids
    assert ledger.take() is None


def test_a_task_is_seen_and_removed_only_by_its_owner_and_its_id_says_nothing(ledger: Ledger) -> None:
    mine, yours = submitted(ledger, ME), submitted(ledger, YOU)
    assert ledger.find(mine, YOU) is None
    assert not ledger.remove(mine, YOU)
    assert ledger.find(mine, ME) is not None
    assert len(mine) >= 32
    assert mine[:8] != yours[:8]
    assert ledger.remove(mine, ME)
    assert ledger.find(mine, ME) is None
    assert not ledger.source(mine).parent.exists()


def test_what_a_connected_request_holds_is_no_task(ledger: Ledger) -> None:
    task_id = held(ledger)
    assert ledger.find(task_id, ME) is None
    assert not ledger.remove(task_id, ME)
    assert ledger.take() is None
    ledger.let_go(task_id)
    assert not ledger.source(task_id).parent.exists()
    done = submitted(ledger)
    ledger.let_go(done)
    assert ledger.find(done, ME) is not None, "a task outlives the request that brought it"


def test_the_folder_is_the_users_own(ledger: Ledger) -> None:
    assert stat.S_IMODE(ledger.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(ledger.source(held(ledger)).parent.stat().st_mode) == 0o700


def test_bytes_and_waiting_tasks_are_bounded(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path, max_waiting=2, max_bytes=100)
    with pytest.raises(FullError) as caught:
        ledger.hold(ME, 101)
    assert not caught.value.tasks
    first, last = submitted(ledger), submitted(ledger)
    third = held(ledger)
    with pytest.raises(FullError) as caught:
        ledger.submit(third, {}, 1)
    assert caught.value.tasks
    ledger.let_go(third)
    assert ledger.waiting() == 2
    ledger.take()
    ledger.submit(held(ledger), {}, 1)
    whole = ledger.hold(ME, 100 - 3 * 4)
    with pytest.raises(FullError):
        ledger.hold(ME, 1)
    ledger.let_go(whole)
    assert ledger.remove(first, ME)
    assert ledger.remove(last, ME)
    ledger.hold(ME, 96)


def test_results_go_when_their_time_has_passed_and_so_does_their_memory(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path, kept=0.2)
    done, failed = submitted(ledger), submitted(ledger)
    for _ in range(2):
        ledger.take()
    ledger.result(done, "a.result").write_bytes(b"result")
    ledger.finish(done)
    ledger.fail(failed, {"code": "c", "message": "m", "hint": "h"})
    assert ledger.find(failed, ME).error == {"code": "c", "message": "m", "hint": "h"}  # type: ignore[union-attr]
    assert not ledger.source(failed).exists()
    ledger.tidy()
    assert state_of(ledger, done) is State.DONE
    time.sleep(0.25)
    ledger.tidy()
    assert [state_of(ledger, task_id) for task_id in (done, failed)] == [State.EXPIRED, State.EXPIRED]
    assert not ledger.result(done, "a.result").exists()
    time.sleep(0.2)
    ledger.tidy()
    assert ledger.find(done, ME) is None


def test_what_nobody_knows_is_swept_out(ledger: Ledger) -> None:
    task_id = submitted(ledger)
    stray = ledger.folder / "left-by-a-crash"
    stray.mkdir()
    (stray / "scene.tif").write_bytes(b"scene")
    ledger.tidy()
    assert not stray.exists()
    assert ledger.source(task_id).exists()


# Processes that die.


def test_what_a_killed_process_worked_on_is_taken_up_once_more_and_then_failed(ledger: Ledger, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    task_id = submitted(ledger)
    for turn in range(2):
        ready = tmp_path / f"ready{turn}"
        process = context.Process(target=take_and_hang, args=(tmp_path, ready))
        process.start()
        until(lambda ready=ready: ready.exists() and bool(ready.read_text()))
        taken, own = ready.read_text().split(" ")
        assert taken == task_id
        ledger.tidy()
        assert state_of(ledger, task_id) is State.RUNNING, "the process lives"
        kill(process)
        ledger.tidy()
        assert not ledger.source(own).parent.exists(), "what its requests held has gone"
        expected = State.WAITING if turn == 0 else State.FAILED
        assert state_of(ledger, task_id) is expected
    failed = ledger.find(task_id, ME)
    assert failed is not None
    assert failed.error is not None
    assert failed.error["code"] == "task_lost"
    assert not ledger.source(task_id).parent.exists()


def test_a_process_that_says_nothing_for_long_is_taken_for_dead(ledger: Ledger, tmp_path: Path) -> None:
    silent = ledger_in(tmp_path)
    task_id = submitted(ledger)
    silent.take()
    with sqlite3.connect(ledger.folder / "tasks.db") as database:
        database.execute("UPDATE workers SET alive = alive - 60 WHERE name = ?", (silent.worker,))
    ledger.tidy()
    assert state_of(ledger, task_id) is State.WAITING
    assert not silent.advance(task_id, 0.5), "should it wake up, the task is not its own any more"
    assert ledger.take() is not None
    assert not silent.finish(task_id)
    assert state_of(ledger, task_id) is State.RUNNING


def test_many_processes_share_the_tasks_without_doing_any_twice(ledger: Ledger, tmp_path: Path) -> None:
    ids = {submitted(ledger) for _ in range(12)}
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        taken = [name for names in pool.map(take_some, [tmp_path] * 3) for name in names]
    assert sorted(taken) == sorted(ids)


def take_some(folder: Path) -> list[str]:
    ledger = Ledger(folder / "tasks", Limits())
    names = []
    while task := ledger.take():
        names.append(task.id)
        ledger.finish(task.id)
    return names


# Work.


class Worker:
    """Works as it is told by what was asked."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, task: Task, report: Callable[[float], None]) -> dict[str, bytes]:
        self.seen.append(task.id)
        match task.asked["do"]:
            case "fail":
                raise UnreadableImageError("scene.tif: truncated; send it whole")
            case "break":
                raise ZeroDivisionError
            case "long":
                while True:
                    report(0.5)
                    time.sleep(0.01)
        report(0.9)
        return {"a.result": b"well done"}


def ask(ledger: Ledger, what: str) -> str:
    task_id = held(ledger)
    ledger.submit(task_id, {"name": "scene.tif", "do": what}, windows=1)
    return task_id


def test_a_runner_does_tasks_and_tells_why_one_failed(ledger: Ledger) -> None:
    good, bad, broken = (ask(ledger, what) for what in ("well", "fail", "break"))
    runner = TaskRunner(ledger, Worker(), max_wait_seconds=10)
    try:
        until(lambda: state_of(ledger, broken) is State.FAILED)
        assert ledger.result(good, "a.result").read_bytes() == b"well done"
        errors = [task.error for task in (ledger.find(bad, ME), ledger.find(broken, ME)) if task]
        assert errors[0] == {"code": "unreadable_image", "message": "scene.tif: truncated", "hint": "send it whole"}
        assert errors[1] is not None
        assert errors[1]["code"] == "internal"
    finally:
        runner.close()


def test_a_task_that_is_removed_or_takes_too_long_is_stopped(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path)
    removed = ask(ledger, "long")
    runner = TaskRunner(ledger, Worker(), max_wait_seconds=0.3)
    try:
        until(lambda: state_of(ledger, removed) is State.RUNNING)
        slow = ask(ledger, "long")
        ledger.remove(removed, ME)
        until(lambda: state_of(ledger, slow) is State.FAILED)
        found = ledger.find(slow, ME)
        assert found is not None
        assert found.error is not None
        assert found.error["code"] == "too_large"
        assert "cut it" in found.error["hint"]
    finally:
        runner.close()


def test_a_runner_that_closes_leaves_its_task_to_the_next_one(ledger: Ledger, tmp_path: Path) -> None:
    task_id = ask(ledger, "long")
    runner = TaskRunner(ledger, Worker(), max_wait_seconds=60)
    until(lambda: state_of(ledger, task_id) is State.RUNNING)
    runner.close()
    assert state_of(ledger, task_id) is State.WAITING
    again = ledger_in(tmp_path)
    for _ in range(3):  # being left is not held against it
        taken = again.take()
        assert taken is not None
        again.give_back(task_id)


def test_who_is_told_to_stop_is_told_by_an_error(ledger: Ledger) -> None:
    told: list[bool] = []

    def work(task: Task, report: Callable[[float], None]) -> dict[str, bytes]:
        ledger.remove(task.id, ME)
        with pytest.raises(StoppedError):
            report(0.1)
        told.append(True)
        raise StoppedError

    ask(ledger, "well")
    runner = TaskRunner(ledger, work, max_wait_seconds=60)
    try:
        until(lambda: bool(told))
    finally:
        runner.close()
