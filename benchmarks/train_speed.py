"""How fast training is: the network alone, the whole step with its data, and torchgeo's, in one run.

    python benchmarks/train_speed.py                              # on the GPU if there is one, else on the
    CPU python benchmarks/train_speed.py --network resnet50 --peer peer/bin/python

For torchgeo, which needs an environment of its own: `python -m venv peer && peer/bin/pip install
torchgeo==0.8.1 pytorch-lightning albumentations==2.0.8` (what it shares with this project must be there too).

Prints a table in Markdown. **Ceiling**: forward, backward and the optimiser's step on one batch that lies on
the device. **Full step**: `tilewise.training.fit.task` with the data module, all of the augmentation, the
average of weights and the watch over the loss, in Lightning; the epochs after the first, without validation.
**Share of matmul**: the floating-point operations of the ceiling's step, against a product of large square
matrices in the same precision on this device. The tiles are noise: no pixel changes the time. On a CPU all
speeds are images for each second of one core's time, since other work may share the cores, and torchgeo reads
in the training process. It needs torch, Lightning and numpy; on the CPU Albumentations too, and rasterio only
with --peer.
"""

import argparse
import datetime
import logging
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from peers.networks import build
from torch.utils.flop_counter import FlopCounterMode

from tilewise.datasets.loading.augment import AugmentOptions
from tilewise.datasets.loading.module import TileDataModule
from tilewise.models.network.classifier import Classifier
from tilewise.training.fit.callbacks import Ema, Health, SeedEachStep
from tilewise.training.fit.optimisation import Forward, allow_tf32, best_precision, compiled, faster_forward
from tilewise.training.fit.task import ClassificationTask

PROJECT = Path(__file__).resolve().parent.parent
TYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "32-true": torch.float32}
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    device: torch.device
    network: str
    batch: int
    tiles: int
    epochs: int
    workers: int
    compile: bool | None

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


@dataclass(frozen=True)
class Row:
    """One line of the table, speeds in images/s."""

    precision: str
    ceiling: float
    full: float
    share: float
    memory: float
    torchgeo: float | None

    def __str__(self) -> str:
        peer = (
            f"{self.torchgeo:,.0f} | {self.full / self.torchgeo:.1f} ×"
            if self.torchgeo
            else f"{NOT_MEASURED} | –"
        )
        return (
            f"| {self.precision} | {self.ceiling:,.0f} | {self.full:,.0f} | {self.full / self.ceiling:.0%} "
            f"| {self.share:.0%} | {self.memory / 2**30:.2f} GiB | {peer} |"
        )


def main() -> None:
    arguments = parse()
    gpu = torch.cuda.is_available() if arguments.device == "auto" else arguments.device == "cuda"
    device = torch.device("cuda" if gpu else "cpu")
    tiles = arguments.tiles or (27_000 if gpu else 1_536)
    workers = len(os.sched_getaffinity(0)) if gpu else 0
    compile = True if arguments.compile else None
    setting = Setting(device, arguments.network, arguments.batch, tiles, arguments.epochs, workers, compile)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    allow_tf32(True)
    head(setting)
    with tempfile.TemporaryDirectory() as folder:
        pack = write_array(Path(folder) / "tiles.npz", tiles)
        eurosat = write_eurosat(Path(folder) / "eurosat", pack) if arguments.peer else None
        for precision in arguments.precision or choose_precisions(setting):
            peer = torchgeo(arguments.peer, eurosat, setting, precision) if eurosat else None
            print(measure(setting, pack, precision, peer), flush=True)
    if not setting.on_gpu:
        print(f"\nOn a GPU: {NOT_MEASURED} (none was at hand).")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--network", default="tilewise", help="demo, tilewise, or a network of torchvision")
    parser.add_argument("--batch", type=int, default=128, help="tiles a step")
    parser.add_argument("--tiles", type=int, help="in an epoch; default 27,000 on a GPU, else 1,536")
    parser.add_argument("--epochs", type=int, default=3, help="the first is not counted")
    parser.add_argument(
        "--compile", action="store_true", help="network and augmentation, as configs/experiments do on a CPU"
    )
    parser.add_argument("--precision", action="append", choices=sorted(TYPES))
    parser.add_argument("--peer", type=Path, help="a Python that has torchgeo")
    return parser.parse_args()


def choose_precisions(setting: Setting) -> list[str]:
    """Return all that the device is meant for, the default first."""
    others = ["16-mixed", "32-true"] if setting.on_gpu else ["32-true"]
    return list(dict.fromkeys([best_precision(), *others]))


def head(setting: Setting) -> None:
    name = (
        torch.cuda.get_device_name()
        if setting.on_gpu
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    how = ", compiled" if setting.compile else ""
    print(f"{datetime.date.today()}, {name}, torch {torch.__version__}, network {setting.network}, "
          f"batches of {setting.batch}, {setting.tiles:,} tiles of 13 bands an epoch{how}\n")  # fmt: skip
    unit = "images/s" if setting.on_gpu else "images/core-second"
    print(
        f"| precision | ceiling, {unit} | full step, {unit} | full / ceiling | share of matmul "
        f"| {'device' if setting.on_gpu else 'process'} memory | torchgeo, {unit} | full / torchgeo |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|", flush=True)


def measure(setting: Setting, pack: Path, precision: str, peer: float | None) -> Row:
    if setting.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    ceiling, operations = network_alone(setting, precision)
    full = full_step(setting, pack, precision)
    share = ceiling * operations / matmul(setting.device, TYPES[precision])
    memory = (
        torch.cuda.max_memory_allocated()
        if setting.on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    return Row(precision, ceiling, full, share, memory * (1 if setting.on_gpu else 1024), peer)


def network_alone(setting: Setting, precision: str) -> tuple[float, float]:
    """Return images/s of the step on fixed data, and its floating-point operations an image."""
    torch.manual_seed(0)
    classifier = Classifier(build(setting.network), 10, [1500.0] * 13, [900.0] * 13).to(setting.device)
    classifier.to(memory_format=torch.channels_last)
    tiles = torch.randint(1, 4000, (setting.batch, 13, 64, 64), device=setting.device).float()
    targets = torch.nn.functional.one_hot(torch.arange(setting.batch, device=setting.device) % 10, 10).float()
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=1e-3, fused=True)
    context = torch.autocast(setting.device.type, TYPES[precision], enabled=precision != "32-true")
    with context:
        forward = choose_forward(setting, classifier, tiles)

    def step() -> None:
        with context:
            logits, _ = forward(tiles)
        torch.nn.functional.cross_entropy(logits.float(), targets).backward()
        optimiser.step()
        optimiser.zero_grad()

    with FlopCounterMode(display=False) as counter, context:
        classifier(tiles)[0].float().sum().backward()
    optimiser.zero_grad()
    return setting.batch / seconds(step, setting.device), counter.get_total_flops() / setting.batch


def choose_forward(setting: Setting, classifier: Classifier, tiles: torch.Tensor) -> Forward:
    """Return the network in the form that training uses."""
    if setting.compile:
        return compiled(classifier)
    return faster_forward(classifier, tiles)[0] if setting.on_gpu else classifier


class Clock(pl.Callback):
    """Takes the time from the end of the first epoch to the end of the last."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        wait(pl_module.device)
        self.ends.append(now(pl_module.device))


def full_step(setting: Setting, pack: Path, precision: str) -> float:
    """Return images/s of training as `tilewise train fit` does it."""
    pl.seed_everything(0, verbose=False)
    augment = AugmentOptions(compile=setting.compile)
    data = TileDataModule(pack, batch_size=setting.batch, augment=augment)
    known = data.classes, data.band_mean, data.band_std, data.class_counts
    task = ClassificationTask(*known, build(setting.network), compile=setting.compile)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="gpu" if setting.on_gpu else "cpu",
            devices=1,
            precision=precision,  # type: ignore[arg-type]
            max_epochs=setting.epochs,
            gradient_clip_val=2.0,
            limit_val_batches=0,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
            callbacks=[Ema(), SeedEachStep(), Health(), clock],
        )
        trainer.fit(task, datamodule=data)
    steps = trainer.num_training_batches * (setting.epochs - 1)
    return float(steps * setting.batch / (clock.ends[-1] - clock.ends[0]))


def matmul(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of a product of large square matrices."""
    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: torch.mm(left, right), device)


def seconds(step: Callable[[], object], device: torch.device, minimum: float = 3.0) -> float:
    """Return the mean time of `step`, over at least `least` seconds, after a few that do not count."""
    for _ in range(3):
        step()
    wait(device)
    start, count = now(device), 0
    while now(device) - start < minimum:
        for _ in range(5 if device.type == "cpu" else 50):
            step()
            count += 1
        wait(device)
    return (now(device) - start) / count


def now(device: torch.device) -> float:
    """Return seconds of the clock, or on a CPU of the time that this process has had of all cores."""
    return time.perf_counter() if device.type == "cuda" else time.process_time()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def write_array(path: Path, count: int) -> Path:
    """Write `count` tiles of noise to train with, and a few to validate with."""
    rng = np.random.default_rng(0)
    held_back = 64
    tiles = rng.integers(1, 4000, (count + held_back, 13, 64, 64), np.uint16)
    splits = np.array(["train"] * count + ["val"] * held_back)
    np.savez(path, tiles=tiles, labels=np.arange(len(tiles)) % 10, splits=splits)
    return path


def write_eurosat(root: Path, pack: Path) -> Path:
    """Write the same training tiles as GeoTIFFs, in the folders and with the lists that torchgeo expects."""
    import rasterio

    with np.load(pack) as arrays:
        tiles, labels, splits = (arrays[name] for name in ("tiles", "labels", "splits"))
    classes = [f"Class{n}" for n in range(10)]
    base = root / "ds/images/remote_sensing/otherDatasets/sentinel_2/tif"
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    profile = {"driver": "GTiff", "width": 64, "height": 64, "count": 13, "dtype": "uint16"}
    for number, (tile, label, split) in enumerate(zip(tiles, labels, splits, strict=True)):
        path = base / classes[label] / f"{classes[label]}_{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(path, "w", **profile) as dataset:
            dataset.write(tile)
        lists[str(split)].append(path.with_suffix(".jpg").name)
    for split, names in lists.items():
        (root / f"eurosat-{split}.txt").write_text("\n".join(names or lists["val"]) + "\n")
    return root


def torchgeo(python: Path, root: Path, setting: Setting, precision: str) -> float:
    """Return images/s of torchgeo's data module and trainer, in a process of its own."""
    command = [str(python), str(PROJECT / "benchmarks/peers/torchgeo_train.py"), str(root)]
    options = {"network": setting.network, "batch": setting.batch, "workers": setting.workers}
    options |= {"precision": precision, "epochs": setting.epochs, "device": setting.device.type}
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600)
    if done.returncode:
        sys.exit(f"torchgeo failed: {done.stderr.strip()[-800:]}")
    return float(done.stdout.rsplit("images/s", 1)[1])


if __name__ == "__main__":
    main()
