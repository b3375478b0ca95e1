"""Streaming: from notices of new scenes in a queue to maps and results (`tilewise stream`, or `Consumer`)."""

from tilewise.bento.stream.allow_list import AllowList
from tilewise.bento.stream.consumer import Consumer, ConsumerOptions, NoticeStatus
from tilewise.bento.stream.queue import Queue
from tilewise.bento.stream.worker import SceneWorker, SceneWorkerOptions

__all__ = [
    "AllowList",
    "Consumer",
    "ConsumerOptions",
    "NoticeStatus",
    "Queue",
    "SceneWorker",
    "SceneWorkerOptions",
]
