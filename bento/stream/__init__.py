"""Notices of new scenes, from a queue to maps and results: `python -m bento.stream`."""

from bento.stream.notices import Notice, parse_notice
from bento.stream.places import Places

__all__ = ["Notice", "Places", "parse_notice"]
