"""Folders of scenes to maps and tables: `python -m bento.batch`, or `classify_scenes` from Python."""

from bento.batch.cli import classify_scenes, find_scenes, output_names

__all__ = ["classify_scenes", "find_scenes", "output_names"]
