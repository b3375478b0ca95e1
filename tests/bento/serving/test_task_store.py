"""The task store: shared by several processes together, which may die at any time."""

import errno
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
from small_disk import fill, small_disk

from tilewise.bento.serving.background import WorkStoppedError
from tilewise.bento.serving.task_runner import TaskRunner
from tilewise.bento.serving.task_store import (
    FULL,
    FullError,
    StorageLimits,
    StoredTask,
    TaskState,
    TaskStore,
    owner_of,
)
from tilewise.datasets.core.errors import TilewiseError, UnreadableImageError

ME, YOU, THEM = owner_of("me"), owner_of("you"), owner_of("them")
WAIT_S = 15


def store_in(folder: Path, **limits: float) -> TaskStore:
    return TaskStore(folder / "tasks", replace(StorageLimits(), **limits))  # type: ignore[arg-type]


def held(store: TaskStore, owner: str = ME, content: bytes = b"II*\0") -> str:
    task_id = store.hold(owner, owner)
    store.grow(task_id, len(content))
    store.source(task_id).write_bytes(content)
    return task_id


def submitted(store: TaskStore, owner: str = ME) -> str:
    task_id = held(store, owner)
    store.submit(task_id, {"name": "scene.tif"}, windows=7)
    return task_id


def state_of(store: TaskStore, task_id: str, owner: str = ME) -> TaskState | None:
    task = store.find(task_id, owner)
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
    store = TaskStore(folder / "tasks", StorageLimits())
    task, own = store.take(), held(store)
    ready.write_text(f"{task.id if task else ''} {own}")
    time.sleep(600)


@pytest.fixture
def store(tmp_path: Path) -> TaskStore:
    return store_in(tmp_path)


# One process after another.


def test_a_task_goes_from_waiting_to_done_and_its_scene_goes(store: TaskStore, tmp_path: Path) -> None:
    task_id = submitted(store)
    other = store_in(tmp_path)
    found = other.find(task_id, ME)
    assert found is not None
    assert (found.state, found.windows, found.progress, found.finished) == (TaskState.WAITING, 7, 0, None)
    taken = other.take()
    assert taken is not None
    assert (taken.id, taken.state, taken.question) == (task_id, TaskState.RUNNING, {"name": "scene.tif"})
    assert store.take() is None, "nobody else gets it"
    assert other.advance(task_id, 0.25)
    assert store.find(task_id, ME).progress == 0.25  # type: ignore[union-attr]
    assert not store.advance(task_id, 0.5), "it is not this process's"
    other.result(task_id, "a.result").write_bytes(b"result")
    assert other.finish(task_id)
    assert state_of(store, task_id) is TaskState.DONE
    assert store.result(task_id, "a.result").read_bytes() == b"result"
    assert not store.source(task_id).exists()


def test_tasks_are_taken_in_the_order_in_which_they_came_and_told_how_many_are_ahead(
    store: TaskStore,
) -> None:
    ids = [submitted(store) for _ in range(3)]
    tasks = [store.find(task_id, ME) for task_id in ids]
    assert [store.ahead(task) for task in tasks if task] == [0, 1, 2]
    assert [task.id for task in (store.take(), store.take(), store.take()) if task] == ids
    assert store.take() is None


def test_a_task_is_seen_and_removed_only_by_its_owner_and_its_id_says_nothing(store: TaskStore) -> None:
    mine, yours = submitted(store, ME), submitted(store, YOU)
    assert store.find(mine, YOU) is None
    assert not store.remove(mine, YOU)
    assert store.find(mine, ME) is not None
    assert len(mine) >= 32
    assert mine[:8] != yours[:8]
    assert store.remove(mine, ME)
    assert store.find(mine, ME) is None
    assert not store.source(mine).parent.exists()


def test_what_a_connected_request_holds_is_no_task(store: TaskStore) -> None:
    task_id = held(store)
    assert store.find(task_id, ME) is None
    assert not store.remove(task_id, ME)
    assert store.take() is None
    store.release(task_id)
    assert not store.source(task_id).parent.exists()
    done = submitted(store)
    store.release(done)
    assert store.find(done, ME) is not None, "a task outlives the request that brought it"


def test_the_folder_is_the_users_own(store: TaskStore) -> None:
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(store.source(held(store)).parent.stat().st_mode) == 0o700


def test_bytes_and_waiting_tasks_are_bounded(tmp_path: Path) -> None:
    store = store_in(tmp_path, max_waiting=2, max_bytes=100)
    with pytest.raises(FullError) as caught:
        held(store, content=b"x" * 101)
    assert not caught.value.tasks
    first, last = submitted(store, ME), submitted(store, YOU)
    third = held(store, THEM)
    with pytest.raises(FullError) as caught:
        store.submit(third, {}, 1)
    assert caught.value.tasks
    store.release(third)
    assert store.waiting() == 2
    store.take()
    store.submit(held(store, THEM), {}, 1)
    whole = held(store, owner_of("others"), b"x" * (100 - 3 * 4))
    with pytest.raises(FullError):
        held(store, owner_of("a fifth"), b"x")
    store.release(whole)
    assert store.remove(first, ME)
    assert store.remove(last, YOU)
    held(store, YOU, b"x" * 90)


def test_one_caller_has_half_of_the_bytes_and_of_the_waiting_tasks(tmp_path: Path) -> None:
    store = store_in(tmp_path, max_waiting=4, max_bytes=100)
    for _ in range(2):
        submitted(store, ME)
    mine = held(store, ME)
    with pytest.raises(FullError) as caught:
        store.submit(mine, {}, 1)
    assert caught.value.tasks
    submitted(store, YOU)
    with pytest.raises(FullError):
        store.grow(mine, 50)
    alone = held(store, THEM)
    store.grow(alone, 80)  # the only scene of a caller may be any that fits


def test_a_scene_is_charged_as_it_grows(tmp_path: Path) -> None:
    store = store_in(tmp_path, max_bytes=100)
    for _ in range(50):
        slow = store.hold(ME, "slow")
    honest = store.hold(YOU, "honest")
    store.grow(honest, 100)
    with pytest.raises(FullError):
        store.grow(slow, 1)
    store.grow(honest, 99)
    store.grow(slow, 1)


# A full disk.


def test_scenes_are_refused_before_the_disk_is_full() -> None:
    with small_disk(20) as disk:
        store = store_in(disk)
        task_id = held(store)
        store.grow(task_id, 10 * 2**20)
        with pytest.raises(FullError):
            store.grow(task_id, 30 * 2**20)
        store.release(task_id)
        store.grow(held(store), 10 * 2**20)


def test_a_full_disk_is_told_and_gone_through_without_a_restart() -> None:
    with small_disk(20) as disk:
        store = store_in(disk)
        upload, task_id = held(store, content=b"x" * 2**20), submitted(store)
        other = fill(disk)
        with pytest.raises(FullError):
            [store.hold(ME, "somebody") for _ in range(200)]  # until the log of the database is full too
        store.release(upload)
        assert not store.source(upload).parent.exists()
        assert store.remove(task_id, ME)
        other.unlink()
        store.tidy()
        store.grow(held(store, YOU), 4 * 2**20)
        assert (store.folder / "reserve").exists()


def test_a_service_starts_on_a_full_disk_by_its_reserve_and_clears_what_a_killed_one_held(
    tmp_path: Path,
) -> None:
    with small_disk(20) as disk:
        ready = tmp_path / "ready"
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=take_and_hang, args=(disk, ready))
        process.start()
        until(lambda: ready.exists() and bool(ready.read_text()))
        kill(process)
        own = ready.read_text().split(" ")[1]
        (disk / "tasks" / own / "scene.tif").write_bytes(b"x" * 2**20)
        fill(disk)
        store = store_in(disk)
        store.tidy()
        assert not store.source(own).parent.exists()


def test_without_its_reserve_it_says_what_to_do() -> None:
    with small_disk(1) as disk:
        fill(disk)
        with pytest.raises(
            TilewiseError, match="make room on its disk, or name another folder by TILEWISE_TASKS"
        ):
            store_in(disk)


def test_a_result_that_the_disk_does_not_take_fails_its_task_and_not_the_runner(store: TaskStore) -> None:
    def work(task: StoredTask, report: Callable[[float], None]) -> dict[str, bytes]:
        if task.question["do"] == "fill":
            raise OSError(errno.ENOSPC, "No space left on device")
        return {"a.result": b"well done"}

    full, good = ask(store, "fill"), ask(store, "well")
    runner = TaskRunner(store, work, max_seconds=10)
    try:
        until(lambda: state_of(store, good) is TaskState.DONE)
        found = store.find(full, ME)
        assert found is not None
        assert found.error == FULL
    finally:
        runner.close()


def test_a_store_of_a_former_version_is_taken_over(tmp_path: Path) -> None:
    task_id = submitted(store_in(tmp_path))
    with sqlite3.connect(tmp_path / "tasks" / "tasks.db") as database:
        database.execute("ALTER TABLE tasks DROP COLUMN caller")
    store = store_in(tmp_path)
    assert state_of(store, task_id) is TaskState.WAITING
    submitted(store)


def test_results_go_when_their_time_has_passed_and_so_does_their_memory(tmp_path: Path) -> None:
    store = store_in(tmp_path, kept=0.2)
    done, failed = submitted(store), submitted(store)
    for _ in range(2):
        store.take()
    store.result(done, "a.result").write_bytes(b"result")
    store.finish(done)
    store.fail(failed, {"code": "c", "message": "m", "hint": "h"})
    assert store.find(failed, ME).error == {"code": "c", "message": "m", "hint": "h"}  # type: ignore[union-attr]
    assert not store.source(failed).exists()
    store.tidy()
    assert state_of(store, done) is TaskState.DONE
    time.sleep(0.25)
    store.tidy()
    assert [state_of(store, task_id) for task_id in (done, failed)] == [TaskState.EXPIRED, TaskState.EXPIRED]
    assert not store.result(done, "a.result").exists()
    time.sleep(0.2)
    store.tidy()
    assert store.find(done, ME) is None


def test_what_nobody_knows_is_swept_out(store: TaskStore) -> None:
    task_id = submitted(store)
    stray = store.folder / "left-by-a-crash"
    stray.mkdir()
    (stray / "scene.tif").write_bytes(b"scene")
    store.tidy()
    assert not stray.exists()
    assert store.source(task_id).exists()


# Processes that die.


def test_what_a_killed_process_worked_on_is_taken_up_once_more_and_then_failed(
    store: TaskStore, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("spawn")
    task_id = submitted(store)
    for turn in range(2):
        ready = tmp_path / f"ready{turn}"
        process = context.Process(target=take_and_hang, args=(tmp_path, ready))
        process.start()
        until(lambda ready=ready: ready.exists() and bool(ready.read_text()))
        taken, own = ready.read_text().split(" ")
        assert taken == task_id
        store.tidy()
        assert state_of(store, task_id) is TaskState.RUNNING, "the process lives"
        kill(process)
        store.tidy()
        assert not store.source(own).parent.exists(), "what its requests held has gone"
        expected = TaskState.WAITING if turn == 0 else TaskState.FAILED
        assert state_of(store, task_id) is expected
    failed = store.find(task_id, ME)
    assert failed is not None
    assert failed.error is not None
    assert failed.error["code"] == "task_lost"
    assert not store.source(task_id).parent.exists()


def look_on(store: TaskStore, seconds: float) -> None:
    """Let a process tidy the store for a while, as it does every two seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        store.tidy()
        time.sleep(0.05)


def test_a_process_that_says_nothing_for_long_loses_its_task_and_keeps_its_uploads(tmp_path: Path) -> None:
    store, silent = store_in(tmp_path, max_silent=1.0), store_in(tmp_path)
    task_id, upload = submitted(store), held(silent)
    silent.take()
    look_on(store, 0.7)
    silent.record_heartbeat()
    look_on(store, 0.7)
    assert state_of(store, task_id) is TaskState.RUNNING
    look_on(store, 0.7)
    assert silent.source(upload).exists(), "it lives: its request would find no file"
    assert state_of(store, task_id) is TaskState.WAITING
    assert not silent.advance(task_id, 0.5), "should it wake up, the task is not its own any more"
    assert store.take() is not None
    assert not silent.finish(task_id)
    assert state_of(store, task_id) is TaskState.RUNNING


def test_a_pause_of_all_processes_ends_nothing(tmp_path: Path) -> None:
    store, other = store_in(tmp_path, max_silent=0.4), store_in(tmp_path)
    task_id, upload = submitted(store), held(other)
    other.take()
    store.tidy()
    time.sleep(0.6)  # nobody runs
    store.tidy()
    assert state_of(store, task_id) is TaskState.RUNNING
    assert other.source(upload).exists()


def test_a_step_of_the_clock_ends_nothing(
    store: TaskStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = store_in(tmp_path)
    task_id, upload = submitted(store), held(other)
    other.take()
    store.tidy()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1000)
    store.tidy()
    assert state_of(store, task_id) is TaskState.RUNNING
    assert other.source(upload).exists()


def test_a_process_that_has_the_number_of_a_dead_one_is_another(store: TaskStore, tmp_path: Path) -> None:
    dead = store_in(tmp_path)
    upload = held(dead)
    host, pid, _ = dead.worker.rsplit(":", 2)
    with sqlite3.connect(store.folder / "tasks.db") as database:  # it started at another time than this one
        database.execute("UPDATE workers SET name = ? WHERE name = ?", (f"{host}:{pid}:1-abc", dead.worker))
        database.execute("UPDATE tasks SET worker = ? WHERE id = ?", (f"{host}:{pid}:1-abc", upload))
    store.tidy()
    assert not dead.source(upload).exists()


def test_many_processes_share_the_tasks_without_doing_any_twice(store: TaskStore, tmp_path: Path) -> None:
    ids = {submitted(store) for _ in range(12)}
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        taken = [name for names in pool.map(take_some, [tmp_path] * 3) for name in names]
    assert sorted(taken) == sorted(ids)


def take_some(folder: Path) -> list[str]:
    store = TaskStore(folder / "tasks", StorageLimits())
    names = []
    while task := store.take():
        names.append(task.id)
        store.finish(task.id)
    return names


# Work.


class Worker:
    """Works as it is told by what was asked."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, task: StoredTask, report: Callable[[float], None]) -> dict[str, bytes]:
        self.seen.append(task.id)
        match task.question["do"]:
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


def ask(store: TaskStore, what: str) -> str:
    task_id = held(store)
    store.submit(task_id, {"name": "scene.tif", "do": what}, windows=1)
    return task_id


def test_a_runner_does_tasks_and_tells_why_one_failed(store: TaskStore) -> None:
    good, bad, broken = (ask(store, what) for what in ("well", "fail", "break"))
    runner = TaskRunner(store, Worker(), max_seconds=10)
    try:
        until(lambda: state_of(store, broken) is TaskState.FAILED)
        assert store.result(good, "a.result").read_bytes() == b"well done"
        errors = [task.error for task in (store.find(bad, ME), store.find(broken, ME)) if task]
        assert errors[0] == {
            "code": "unreadable_image",
            "message": "scene.tif: truncated",
            "hint": "send it whole",
        }
        assert errors[1] is not None
        assert errors[1]["code"] == "internal"
    finally:
        runner.close()


def test_a_task_that_is_removed_or_takes_too_long_is_stopped(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    removed = ask(store, "long")
    runner = TaskRunner(store, Worker(), max_seconds=0.3)
    try:
        until(lambda: state_of(store, removed) is TaskState.RUNNING)
        slow = ask(store, "long")
        store.remove(removed, ME)
        until(lambda: state_of(store, slow) is TaskState.FAILED)
        found = store.find(slow, ME)
        assert found is not None
        assert found.error is not None
        assert found.error["code"] == "too_large"
        assert "cut it" in found.error["hint"]
    finally:
        runner.close()


def test_a_runner_that_closes_leaves_its_task_to_the_next_one(store: TaskStore, tmp_path: Path) -> None:
    task_id = ask(store, "long")
    runner = TaskRunner(store, Worker(), max_seconds=60)
    until(lambda: state_of(store, task_id) is TaskState.RUNNING)
    runner.close()
    assert state_of(store, task_id) is TaskState.WAITING
    again = store_in(tmp_path)
    for _ in range(3):  # being left is not held against it
        taken = again.take()
        assert taken is not None
        again.give_back(task_id)


def test_who_is_told_to_stop_is_told_by_an_error(store: TaskStore) -> None:
    told: list[bool] = []

    def work(task: StoredTask, report: Callable[[float], None]) -> dict[str, bytes]:
        store.remove(task.id, ME)
        with pytest.raises(WorkStoppedError):
            report(0.1)
        told.append(True)
        raise WorkStoppedError

    ask(store, "well")
    runner = TaskRunner(store, work, max_seconds=60)
    try:
        until(lambda: bool(told))
    finally:
        runner.close()
