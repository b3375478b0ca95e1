"""Folders of scenes to maps and tables: `tilewise batch`, or `classify_scenes` from Python."""

from tilewise.bento.batch.manifest import ResultFile, SceneOutcome, SceneState
from tilewise.bento.batch.run import Backend, RunOptions, RunProgress, classify_scenes
from tilewise.bento.results.tables import VectorFormat
from tilewise.bento.results.writer import Output, OutputOptions

__all__ = [
    "Backend",
    "Output",
    "OutputOptions",
    "ResultFile",
    "RunOptions",
    "RunProgress",
    "SceneOutcome",
    "SceneState",
    "VectorFormat",
    "classify_scenes",
]
