"""The same retraining as a flow of Prefect: each step a task, with its state, log and duration in Prefect's page.

Prefect sends usage data to its maker unless told not to; this module tells it not to.
"""

import os

from tilewise.datasets.core.errors import TilewiseError
from tilewise.training.registry.retrain import Outcome, Plan, Step, retrain

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

try:
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE
except ImportError as error:
    raise TilewiseError("a flow needs Prefect; pip install 'tilewise[ops]', or leave --flow and --cron out") from error

FLOW = "tilewise retraining"


@flow(name=FLOW, log_prints=True, retries=0)
def retraining(plan: Plan) -> Outcome:
    """Retrain if there is a reason, and end in the gates (`tilewise.training.registry.retrain.retrain`)."""
    return retrain(plan, _as_task)


def serve(plan: Plan, cron: str) -> None:
    """Run the flow at the times of a cron expression (UTC), and when Prefect's page asks for it, until interrupted."""
    retraining.serve(name="retraining", cron=cron, parameters={"plan": plan}, limit=1)


def _as_task(step: Step) -> Step:
    """Return a step as a task; what it did yesterday says nothing of today, so that nothing is cached."""
    wrapped: Step = task(cache_policy=NO_CACHE, persist_result=False)(step)
    return wrapped
