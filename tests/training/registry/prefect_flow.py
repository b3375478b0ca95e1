"""Retrain once as a flow of Prefect with a server of its own, and print what it and the server say.

A process of its own: Prefect changes logging, and what processes do when they end.
"""

import json
import os
import sys
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort, TaskRunSort
from prefect.testing.utilities import prefect_test_harness

from tilewise.training.registry.flow import retraining
from tilewise.training.registry.reasons import Triggers
from tilewise.training.registry.retrain import RetrainPlan


def main(project: Path, data: Path, registry: str) -> None:
    """Run the flow in the folder `project`, with the tiles and the registry that are named."""
    os.chdir(project)
    plan = RetrainPlan(Triggers("schedule"), data=data, gates=project / "gates.yaml", uri=registry)
    with prefect_test_harness(server_startup_timeout=120):
        outcome = retraining(plan)
        with get_client(sync_client=True) as client:
            (run,) = client.read_flow_runs(sort=FlowRunSort.ID_DESC, limit=10)
            tasks = client.read_task_runs(sort=TaskRunSort.ID_DESC, limit=20)
            said = {
                "outcome": [outcome.ending, outcome.version],
                "flow": [client.read_flow(run.flow_id).name, run.state_name],
                "tasks": {task.name.rpartition("-")[0]: task.state_name for task in tasks},
            }
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
