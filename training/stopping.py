"""What a scheduler's SIGTERM does to a long command that works through several trainings."""

import contextlib
import signal
import threading
from collections.abc import Iterator

from datasets.errors import StoppedError


@contextlib.contextmanager
def told_to_end() -> Iterator[None]:
    """Turn SIGTERM into a StoppedError, so that what was begun is ended, too; a training within listens by itself.

    Outside the main thread, which alone may listen to signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise StoppedError("stopped by SIGTERM; the same command goes on")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
