"""Training on a machine that has torch and Lightning and little else: a GPU machine for hire."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from plain_network import PLAIN
from processes import environment

from tilewise.datasets.packs.pack import Pack

pytestmark = pytest.mark.slow

LACKING = (
    "rasterio", "affine", "mlflow", "bentoml", "onnxruntime", "onnx", "onnxscript", "albumentations", "cv2",
    "sklearn",
    "matplotlib", "pyarrow", "pydantic", "starlette", "pandas", "dvc", "rich", "httpx",
)  # fmt: skip
SCRIPT = '''
import sys

from importlib.metadata import DistributionFinder

class Without:
    """A finder of modules and packages that does not find some."""

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        lacking = name.partition(".")[0] in {lacking!r}
        return None if lacking else self.finder.find_spec(name, path, target)

    def find_distributions(self, context=DistributionFinder.Context()):
        lacking = context.name is not None and context.name.lower() in {lacking!r}
        find = getattr(self.finder, "find_distributions", lambda context: [])
        return [] if lacking else find(context)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from tilewise.training.cli import main
main({arguments!r})
'''


def test_an_array_file_is_trained_on_without_what_only_reading_serving_and_tracking_need(
    pack: Pack, tmp_path: Path
) -> None:
    array = tmp_path / "tiles.npz"
    np.savez(array, tiles=pack.fetch(np.arange(len(pack))), labels=pack.labels, splits=pack.splits)
    store = ["--data.loader.store=device", "--trainer.max_epochs=1"]
    arguments = ["fit", *PLAIN, *store, f"--data.pack={array}", f"--out={tmp_path / 'run'}"]
    script = SCRIPT.format(lacking=LACKING, arguments=arguments)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/checkpoints/best.ckpt").is_file()
