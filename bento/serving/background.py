"""Background work of requests: scenes, explanations, pictures and tiles that take long to be read, in a few
threads of low priority."""

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request

from tilewise.bento.serving.admission import Admission, caller_of

_LOG = logging.getLogger("tilewise")
_NICENESS = 10

CLIENT_GONE = 499  # never sent: the status by which logs know a request whose client has disconnected

Value = TypeVar("Value")
Check = Callable[[], None]
"""Called often by work in the background; it raises WorkStoppedError when the work is not wanted any more."""


class WorkStoppedError(Exception):
    """The work is not wanted any more, or must stop now."""


class ClientGoneError(Exception):
    """The client has closed the connection, so the response is not wanted."""


class BackgroundPool:
    """Run work in `threads` threads, of which one is always left to other callers.

    Args:
        name: of the threads.
        threads: two or more.
        max_wait_seconds: that a request may wait for a thread.
        max_waiting: requests that may wait for a thread.
    """

    def __init__(self, name: str, threads: int, max_wait_seconds: float, max_waiting: int = 32) -> None:
        self._room = Admission(threads, threads - 1, max_waiting, max_wait_seconds)
        self._threads = ThreadPoolExecutor(threads, name, initializer=lower_priority)

    async def run(self, request: Request, work: Callable[[Check], Value]) -> Value:
        """Return the result of `work`, as `run_for` does; stop it soon if the client disconnects, too.

        Raises:
            ClientGoneError: the client has disconnected.
            OverloadedError: too many requests wait for a thread.
        """
        working = asyncio.create_task(self.run_for(caller_of(request), work))
        leaving = asyncio.create_task(_disconnected(request))
        either: list[asyncio.Future[Any]] = [working, leaving]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ClientGoneError
            return working.result()
        finally:
            working.cancel()
            leaving.cancel()
            with suppress(Exception, asyncio.CancelledError):  # raised above already, or not wanted
                await working

    async def run_for(self, caller: str, work: Callable[[Check], Value]) -> Value:
        """Return the result of `work`, of `caller`; stop it soon if this call is cancelled.

        A thread is free again only when the work in it has ended: work that goes on after its request was
        answered with 504 would otherwise pile up.

        Raises:
            OverloadedError: too many requests wait for a thread.
        """
        stop = threading.Event()

        def check() -> None:
            if stop.is_set():
                raise WorkStoppedError

        async with self._room.room(caller, 1):
            working = asyncio.get_running_loop().run_in_executor(self._threads, work, check)
            try:
                return await asyncio.shield(working)
            finally:
                stop.set()
                with suppress(Exception):  # raised above already, or not wanted
                    await working

    def close(self) -> None:
        """Start no further work."""
        self._threads.shutdown(wait=False, cancel_futures=True)


async def _disconnected(request: Request) -> None:
    """Return when the client has closed the connection; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def lower_priority() -> None:
    """Give this thread a lower priority than those that answer requests, on systems that support it."""
    if hasattr(os, "setpriority") and hasattr(threading, "get_native_id"):
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        except OSError:
            _LOG.debug("the priority of a thread cannot be set here")
