"""An open scene that several threads read: whoever closes it harms none of them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
from rasterio.windows import Window
from rasters import noise, write_tiff

from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.errors import UnreadableImageError
from tilewise.datasets.scenes import Scene, SceneSource, find_scenes


@pytest.fixture
def source(tmp_path: Path) -> SceneSource:
    path = write_tiff(tmp_path / "s.tif", noise(1, size=256), BAND_NAMES, corner=(600_000, 5_000_000))
    (found,) = find_scenes([path])
    return found


def read_on(scene: Scene, begun: Event) -> str:
    """Read again and again, at most a thousand times; return what ended it."""
    for _ in range(1000):
        try:
            scene.read(Window(0, 0, scene.width, scene.height))
        except UnreadableImageError as error:
            return str(error)
        begun.set()
    return "nothing"


@pytest.mark.parametrize("_", range(5))
def test_a_scene_may_be_closed_while_threads_read_it(source: SceneSource, _: int) -> None:
    begun = Event()
    with ThreadPoolExecutor(4) as threads, source.open() as scene:
        reads = [threads.submit(read_on, scene, begun) for _ in range(4)]
        assert begun.wait(30)
        scene.close()
        assert {read.result(timeout=30) for read in reads} == {"s: the scene is closed"}


def test_a_closed_scene_says_so_and_may_be_closed_again(source: SceneSource) -> None:
    with source.open() as scene:
        scene.close()
        with pytest.raises(UnreadableImageError, match="s: the scene is closed"):
            scene.read(Window(0, 0, 8, 8))
