"""A study in MLflow: one parent run, and one child run a trial."""

import json

from mlflow.tracking import MlflowClient

from training.paths import RunFolder
from training.tracking import Tracking, alive_run, experiment_id, run_id_of

_PARENT = "mlflow.parentRunId"


class StudyRuns:
    """The runs of one study; does nothing where tracking is off."""

    def __init__(self, tracking: Tracking, study: str, known: str | None) -> None:
        """Take up the parent run `known` where it still is, else begin one."""
        self._tracking = tracking
        self.parent: str | None = None
        if tracking.enabled:
            self._client = MlflowClient(tracking_uri=tracking.uri)
            self.parent = alive_run(tracking.uri, known) or self._begin(study)
            self._client.update_run(self.parent, status="RUNNING")

    def options(self, number: int, name: str) -> list[str]:
        """Return the options that make a trial's run a child of the study's."""
        if self.parent is None:
            return []
        tags = {**self._tracking.tags, _PARENT: self.parent, "trial": str(number)}
        return [f"--tracking.tags={json.dumps(tags)}", f"--tracking.run={name}"]

    def forget_unstarted(self, folder: RunFolder) -> None:
        """Delete the run of a trial that was killed before its first checkpoint: it begins anew, with a new run."""
        run = run_id_of(folder, self._tracking.uri) if self.parent else None
        if run and not folder.last.is_file():
            self._client.delete_run(run)

    def trial_ended(self, folder: RunFolder, state: str, number: int, best: float | None) -> None:
        """Say how a trial ended on its own run, and how good the best one is on the study's."""
        if self.parent is None:
            return
        if run := run_id_of(folder, self._tracking.uri):
            self._client.set_tag(run, "trial_state", state)
        if best is not None:
            self._client.log_metric(self.parent, "best/val/accuracy", best, step=number)

    def end(self, status: str, settings: dict[str, str]) -> None:
        """End the study's run, with the best trial's settings as tags: a later trial may be better."""
        if self.parent is None:
            return
        for name, value in settings.items():
            self._client.set_tag(self.parent, f"best/{name}", value)
        self._client.set_terminated(self.parent, status)

    def _begin(self, study: str) -> str:
        tags = {**self._tracking.tags, "mlflow.runName": f"tune {study}"}
        run = self._client.create_run(experiment_id(self._tracking), tags=tags)
        return str(run.info.run_id)
