"""Notices of new scenes, from a queue to maps and results: `python -m bento.stream`, or `Consumer` from Python."""

from bento.stream.consumer import Consumer, ConsumerOptions
from bento.stream.desk import Desk, DeskOptions
from bento.stream.metrics import Fate
from bento.stream.places import Places
from bento.stream.queue import Queue

__all__ = ["Consumer", "ConsumerOptions", "Desk", "DeskOptions", "Fate", "Places", "Queue"]
