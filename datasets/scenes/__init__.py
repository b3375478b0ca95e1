"""Sentinel-2 scenes in any form: found, opened, and read window by window as DN on one grid."""

from datasets.scenes.options import CloudKind, CloudMask, SceneOptions, parse_clouds
from datasets.scenes.scene import BrokenBlock, Scene
from datasets.scenes.search import find_scenes
from datasets.scenes.source import Kind, SceneSource

__all__ = [
    "BrokenBlock",
    "CloudKind",
    "CloudMask",
    "Kind",
    "Scene",
    "SceneOptions",
    "SceneSource",
    "find_scenes",
    "parse_clouds",
]
