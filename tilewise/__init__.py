"""Classify the land cover of Sentinel-2 tiles and scenes.

    import tilewise

    model = tilewise.load()                                   # the newest exported model, or the one that
    ships result = model.classify("tile.tif")                       # a GeoTIFF of 64 × 64 pixels
    print(result.class_name, result.probability)
    scene = model.classify_scene("scene.tif")                 # a GeoTIFF of any size
    print(scene.class_map.shape, scene.windows.num_rows)

    with tilewise.Client("http://localhost:3000") as client:  # the same by a service
        results = client.classify(["a.tif", "b.tif"])

Importing the package loads nothing else: each name is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilewise.api import Model, SceneResult, load
    from tilewise.bento.client import AsyncClient, Client, Result, ServiceError, raise_for_errors
    from tilewise.datasets.core.errors import TilewiseError

__all__ = [
    "AsyncClient",
    "Client",
    "Model",
    "Result",
    "SceneResult",
    "ServiceError",
    "TilewiseError",
    "load",
    "raise_for_errors",
]

_MODULES = {
    "Model": "tilewise.api",
    "SceneResult": "tilewise.api",
    "load": "tilewise.api",
    "AsyncClient": "tilewise.bento.client",
    "Client": "tilewise.bento.client",
    "Result": "tilewise.bento.client",
    "ServiceError": "tilewise.bento.client",
    "raise_for_errors": "tilewise.bento.client",
    "TilewiseError": "tilewise.datasets.core.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
