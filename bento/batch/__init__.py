"""Folders of scenes to maps and tables: `tilewise batch`, or `classify_scenes` from Python."""

from tilewise.bento.batch.manifest import ResultFile, SceneOutcome, State
from tilewise.bento.batch.run import Crew, RunOptions, Standing, classify_scenes
from tilewise.bento.results.tables import VectorFormat
from tilewise.bento.results.writer import Output, OutputOptions

__all__ = [
    "Crew",
    "Output",
    "OutputOptions",
    "ResultFile",
    "RunOptions",
    "SceneOutcome",
    "Standing",
    "State",
    "VectorFormat",
    "classify_scenes",
]
