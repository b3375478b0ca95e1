"""Class maps of scenes that fit into memory, and files that are whole or absent."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt
from rasterio.io import MemoryFile
from rasterio.shutil import copy as copy_raster

from bento.legend import colours
from bento.scene import NO_CLASS
from datasets.tile import Georeference
from models.modelfile import ModelMetadata

_BLOCK = 512


def write_class_map(class_map: npt.NDArray[np.uint8], place: Georeference, metadata: ModelMetadata, path: Path) -> None:
    """Write a class map as Cloud-Optimised GeoTIFF on the scene's grid.

    It has a colour table, overviews by mode, 255 as no data, and the classes' names: as the band's category
    names (in the side-car file where GDAL keeps them) and as the tag CLASSES inside the file.
    """
    profile = {
        "driver": "GTiff",
        "height": class_map.shape[0],
        "width": class_map.shape[1],
        "count": 1,
        "dtype": "uint8",
        "nodata": NO_CLASS,
        "crs": place.crs,
        "transform": place.transform,
    }
    with MemoryFile() as memory, MemoryFile() as cog:
        with memory.open(**profile) as dataset:
            dataset.write(class_map, 1)
            table = {index: (*colour, 255) for index, colour in enumerate(colours(metadata.classes))}
            dataset.write_colormap(1, {**table, NO_CLASS: (0, 0, 0, 0)})
            dataset.set_band_description(1, "class")
            dataset.update_tags(CLASSES=json.dumps(list(metadata.classes)), MODEL=f"{metadata.name} {metadata.version}")
        options = {"COMPRESS": "DEFLATE", "BLOCKSIZE": _BLOCK, "OVERVIEW_RESAMPLING": "MODE"}
        with memory.open() as dataset:
            copy_raster(dataset, cog.name, driver="COG", **options, ADD_ALPHA="NO")
        # Not by GDAL's own hand: it tells of a full disk late and in many ways.
        with whole(path) as partial:
            partial.write_bytes(cog.read())
    with whole(path.with_name(f"{path.name}.aux.xml")) as partial:
        partial.write_text(category_names(metadata.classes), encoding="utf-8")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a path to write to, which becomes `path` only when the block ends well."""
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def category_names(classes: Sequence[str]) -> str:
    """Return the content of the side-car file that GDAL and QGIS read the names of a map's classes from."""
    names = "".join(f"<Category>{escape(name)}</Category>" for name in classes)
    band = f'<PAMRasterBand band="1"><CategoryNames>{names}</CategoryNames></PAMRasterBand>'
    return f"<PAMDataset>{band}</PAMDataset>\n"
