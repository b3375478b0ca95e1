"""Scenes on a real Ray cluster of several nodes: the same files as on one machine, also if a node is lost."""

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from batch_runs import ROOT, results_in

from tilewise.bento.batch import Backend, Output, OutputOptions, RunOptions, SceneState, classify_scenes
from tilewise.bento.batch.cli import main
from tilewise.datasets.acquire.synthetic import synthesise_scene
from tilewise.datasets.core.errors import TilewiseError

pytestmark = pytest.mark.slow

ray = pytest.importorskip("ray", reason="pip install 'tilewise[cluster]'")

LOCAL = RunOptions(outputs=OutputOptions((Output.CLASSES, Output.OUTLIER, Output.WINDOWS)))
# In parts of two strips, so that small scenes are worked on as large ones are.
CLUSTER = replace(LOCAL, backend=Backend.RAY, block_strips=2)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for number in range(6):
        synthesise_scene(folder / f"s{number}.tif", number, 4 if number else 1, 4)
    (folder / "broken.tif").write_bytes(b"II*\x00nothing")
    return folder


@pytest.fixture(scope="module")
def local(scenes: Path, linear_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("local")
    list(classify_scenes(scenes, out, model=linear_model, options=LOCAL))
    return results_in(out)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one core each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_one_line(
    linear_model: Path, scenes: Path, tmp_path: Path, address: str
) -> None:
    with pytest.raises(TilewiseError, match="no Ray cluster answers"):
        list(classify_scenes(scenes, tmp_path, model=linear_model, options=replace(CLUSTER, address=address)))


def test_a_cluster_that_loses_a_node_makes_the_same_files(
    cluster: Any, scenes: Path, local: dict[str, bytes], linear_model: Path, tmp_path: Path
) -> None:
    outcomes = {}
    for outcome in classify_scenes(scenes, tmp_path, model=linear_model, options=CLUSTER):
        outcomes[outcome.name] = outcome
        if len(outcomes) == 2:  # the others are in work
            cluster.remove_node(cluster.second, allow_graceful=False)
    assert outcomes.pop("broken").state is SceneState.FAILED
    assert {outcome.state for outcome in outcomes.values()} == {SceneState.DONE}, outcomes
    assert results_in(tmp_path) == local
    # What the cluster has done, one machine knows to be done, and the other way round.
    for options in (LOCAL, CLUSTER):
        again = list(classify_scenes(scenes, tmp_path, model=linear_model, options=options))
        assert sum(outcome.state is SceneState.KEPT for outcome in again) == 6


def test_the_kubernetes_job_says_what_the_command_understands() -> None:
    job, policy = yaml.safe_load_all((ROOT / "deploy" / "kuberay.yaml").read_text())
    assert (policy["kind"], policy["spec"]["policyTypes"]) == ("NetworkPolicy", ["Ingress"])
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:2] == ["tilewise", "batch"]
    options = main.make_context("tilewise batch", words[2:]).params
    assert (options["backend"], options["address"], options["as_json"]) == ("ray", "auto", True)
    workers = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    shared = {mount["mountPath"] for mount in workers["containers"][0]["volumeMounts"]}
    assert all(
        str(Path(place).parent) in shared
        for place in (*options["scenes"], options["model"], str(options["out"]))
    )
