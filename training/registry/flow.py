"""The retraining as a flow of Prefect: each step is a task, with state, log and duration in Prefect's user
interface.

Prefect sends usage data to its maker by default; this module switches that off.
"""

import os

from tilewise.datasets.core.errors import TilewiseError
from tilewise.training.registry.retrain import Outcome, RetrainPlan, Step, retrain

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

try:
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE
except ImportError as error:
    raise TilewiseError(
        "a flow needs Prefect; pip install 'tilewise[ops]', or omit --flow and --cron"
    ) from error

FLOW = "tilewise retraining"


@flow(name=FLOW, log_prints=True, retries=0)
def retraining(plan: RetrainPlan) -> Outcome:
    """Retrain if there is a reason, and end in the gates (`tilewise.training.registry.retrain.retrain`)."""
    return retrain(plan, _as_task)


def serve(plan: RetrainPlan, cron: str) -> None:
    """Run the flow at the times of a cron expression (UTC), and when it is started from Prefect's user
    interface."""
    retraining.serve(name="retraining", cron=cron, parameters={"plan": plan}, limit=1)


def _as_task(step: Step) -> Step:
    """Return a step as a task whose result is not cached: it depends on more than its arguments."""
    wrapped: Step = task(cache_policy=NO_CACHE, persist_result=False)(step)
    return wrapped
