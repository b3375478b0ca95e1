"""How batch inference grows with machines: 1 and 2 Ray nodes of one core measured here, more of them
simulated.

    python benchmarks/cluster.py --model demo/run/model.onnx

Measured: seconds of one core for a megapixel (a local run), what Ray adds to a scene, and what the run itself
does for each scene, one after another (moving files, manifest). Simulated with these: clusters of more nodes,
for scenes of 10,980 × 10,980 pixels, whose rows are shared out in blocks as the cluster engine does. The
simulation knows no network
and no shared disk: how much a scene's bytes ask of them is printed instead.
"""

import argparse
import heapq
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from tilewise.bento.batch import Backend, RunOptions, SceneOutcome, SceneState, classify_scenes
from tilewise.bento.batch.cluster import BLOCK_STRIPS
from tilewise.bento.batch.manifest import Manifest, ResultFile
from tilewise.datasets.acquire.synthetic import synthesise_scene
from tilewise.models.model_file import find_model

SIDE, TILE, DAY = 10_980, 64, 86_400
CORES = 16  # of a simulated node
WANTED = 10_000  # scenes a day
SCENE_GB = 1.0  # a Level-1C product as it is published, about


@dataclass(frozen=True)
class Costs:
    """Seconds: of a core for a megapixel, of a core for Ray's part of a scene, of the run itself for a
    scene."""

    megapixel: float
    scene: float
    settling: float


def measure(scenes: Path, model: Path, nodes: int) -> float:
    """Return the seconds of a run over `scenes` on a cluster of `nodes` of one core (0: without Ray), models
    loaded."""
    options = RunOptions(threads=1)
    if nodes == 0:
        run(scenes, model, options)  # imports, and fills the disk's cache
        return run(scenes, model, options)
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(nodes - 1):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        options = replace(options, backend=Backend.RAY)
        run(scenes, model, options)  # starts the workers
        return run(scenes, model, options)
    finally:
        ray.shutdown()
        cluster.shutdown()


def run(scenes: Path, model: Path, options: RunOptions) -> float:
    with tempfile.TemporaryDirectory() as out:
        began = time.perf_counter()
        outcomes = list(classify_scenes(scenes, out, model=model, options=options))
        assert all(outcome.state is SceneState.DONE for outcome in outcomes), outcomes
        return time.perf_counter() - began


def measure_settling(count: int = 100) -> float:
    """Return what entering a scene of eight files takes, files synced to this disk."""
    with tempfile.TemporaryDirectory() as folder, Manifest(Path(folder)) as manifest:
        began = time.perf_counter()
        for number in range(count):
            staged = manifest.staging / str(number)
            staged.mkdir()
            files = tuple(ResultFile(f"{number}.{kind}", 4096, "0" * 64) for kind in range(8))
            for file in files:
                (staged / file.name).write_bytes(bytes(file.size))
            manifest.enter(SceneOutcome(str(number), "/in", SceneState.DONE, "key", files=files), staged)
        return (time.perf_counter() - began) / count


def simulate(nodes: int, scenes: int, costs: Costs) -> float:
    """Return the seconds that `nodes` of CORES take for `scenes`: parts go to whichever core is free
    first."""
    strips = -(-SIDE // TILE)
    parts = [min(BLOCK_STRIPS, strips - first) / strips for first in range(0, strips, BLOCK_STRIPS)]
    whole = SIDE * SIDE / 1e6 * costs.megapixel
    cores, settled = [0.0] * (nodes * CORES), 0.0
    ends = []
    for _ in range(scenes):
        end = 0.0
        for part in parts:
            free = heapq.heappop(cores)
            free += part * whole + costs.scene / len(parts)
            heapq.heappush(cores, free)
            end = max(end, free)
        ends.append(end)
    for end in sorted(ends):
        settled = max(settled, end) + costs.settling
    return settled


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="model file; default: the newest exported one")
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--cells", type=int, default=24, help="tiles a side of each scene")
    overrides = parser.parse_args()
    model = find_model(overrides.model)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(overrides.scenes):
            synthesise_scene(Path(folder) / f"s{number}.tif", number, overrides.cells, overrides.cells)
        alone, one, two = (measure(Path(folder), model, nodes) for nodes in (0, 1, 2))
    megapixels = overrides.scenes * (overrides.cells * TILE) ** 2 / 1e6
    costs = Costs(alone / megapixels, max(one - alone, 0) / overrides.scenes, measure_settling())
    print(f"{overrides.scenes} scenes of {(overrides.cells * TILE) ** 2 / 1e6:.1f} megapixels, {model}")
    print(f"{'':24}{'seconds':>9}{'scenes/min':>12}{'speed-up':>10}")
    for name, seconds in (
        ("without Ray, one core", alone),
        ("Ray, 1 node of one core", one),
        ("Ray, 2 nodes", two),
    ):
        print(f"{name:24}{seconds:9.1f}{60 * overrides.scenes / seconds:12.1f}{one / seconds:10.2f}")
    print(
        f"\none core: {1 / costs.megapixel:.2f} megapixels/s; Ray: {1000 * costs.scene:.0f} ms a scene; ",
        end="",
    )
    print(f"moving and manifest: {1000 * costs.settling:.0f} ms a scene, one after another")
    print(f"\nsimulated, scenes of {SIDE} × {SIDE} pixels, nodes of {CORES} such cores")
    print(f"{'nodes':>6}{'scenes/day':>12}{'efficiency':>12}{'GB/s read':>11}")
    enough = None
    for nodes in (1, 2, 4, 8, 16, 32, 64):
        scenes = 40 * nodes
        a_day = DAY * scenes / simulate(nodes, scenes, costs)
        ideal = DAY * nodes * CORES / (SIDE * SIDE / 1e6 * costs.megapixel)
        print(f"{nodes:6}{a_day:12,.0f}{a_day / ideal:12.0%}{a_day * SCENE_GB / DAY:11.2f}")
        enough = enough or (nodes if a_day >= WANTED else None)
    print(f"\n{WANTED:,} scenes a day: {f'{enough} nodes' if enough else 'more than 64 nodes'}; ", end="")
    print(f"the run itself is busy {WANTED * costs.settling / DAY:.1%} of the day")


if __name__ == "__main__":
    main()
