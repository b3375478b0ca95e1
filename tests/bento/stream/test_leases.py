"""How long a notice may be held: as long as its scene may take, and longer where only its result waits."""

import threading

import pytest

from tilewise.bento.stream.leases import Lease, StopWork
from tilewise.bento.stream.queue import Message
from tilewise.datasets.core.errors import TilewiseError

NOTICE = Message("1", "{}", "receipt", 1, 0.0)


def test_a_scene_that_is_done_is_not_given_up_while_its_result_waits() -> None:
    stopping = threading.Event()
    lease = Lease(NOTICE, -1.0, 3600.0, stopping)
    with pytest.raises(TilewiseError, match="allow more by --max-seconds"):
        lease.check()
    lease.keep()
    lease.check()
    assert not lease.is_overdue
    stopping.set()
    with pytest.raises(StopWork):
        lease.check()
