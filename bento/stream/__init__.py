"""Notices of new scenes, from a queue to maps and results: `tilewise stream`, or `Consumer` from Python."""

from tilewise.bento.stream.allow_list import Places
from tilewise.bento.stream.consumer import Consumer, ConsumerOptions, Fate
from tilewise.bento.stream.queue import Queue
from tilewise.bento.stream.worker import SceneWorker, SceneWorkerOptions

__all__ = ["Consumer", "ConsumerOptions", "Fate", "Places", "Queue", "SceneWorker", "SceneWorkerOptions"]
