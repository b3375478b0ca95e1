"""Folders of scenes to maps and tables: `python -m bento.batch`, or `classify_scenes` from Python."""

from bento.batch.outcome import ResultFile, SceneOutcome, State
from bento.batch.results import Output, OutputOptions
from bento.batch.run import Crew, RunOptions, Standing, classify_scenes
from bento.batch.tables import VectorFormat

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
