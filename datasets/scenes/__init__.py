"""Find Sentinel-2 scenes of any kind, open them, and read them window by window as DN on one grid."""

from tilewise.datasets.scenes.mosaic import MosaicKind, MosaicSource, make_mosaic
from tilewise.datasets.scenes.options import CloudKind, CloudMask, SceneOptions, parse_clouds
from tilewise.datasets.scenes.scene import BrokenBlock, Scene
from tilewise.datasets.scenes.search import Kind, SceneSource, find_scenes

__all__ = [
    "BrokenBlock",
    "CloudKind",
    "CloudMask",
    "Kind",
    "MosaicKind",
    "MosaicSource",
    "Scene",
    "SceneOptions",
    "SceneSource",
    "find_scenes",
    "make_mosaic",
    "parse_clouds",
]
