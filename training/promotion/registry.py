"""Model versions in MLflow's registry: which is candidate, champion or archived, and who moved it when and why.

Aliases say what a version is now (`candidate`, `champion`, `previous`), since services follow aliases; tags say what
became of it: `semver`, `stage`, a figure for each gate, and one tag for each event. The registry is MLflow's; nothing
is kept beside it.
"""

import json
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import mlflow
import numpy as np
import onnx
import onnxruntime
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec

from datasets.errors import TrainingError
from datasets.tile import TILE_SIZE
from models.modelfile import INPUT, ModelFile, ModelMetadata, open_model
from training.promotion.gates import Finding

NAME = "sentile"
CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
EXPERIMENT = "sentile"
_EVENT = "event."
_GATE = "gate."
_FILE = "model.onnx"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a version.

    Attributes:
        when: ISO 8601, UTC, to the microsecond.
        what: `registered`, `refused`, `promoted`, `archived` or `rolled back`.
        version: the registry's number of the version.
        semver: the version's semantic version.
        who: the person (or program) that did it.
        why: in their words.
    """

    when: str
    what: str
    version: str
    semver: str
    who: str
    why: str


class Registry:
    """The versions of one model in an MLflow registry.

    Args:
        uri: MLflow's tracking URI: a server, or a SQLite file.
        name: of the registered model.
    """

    def __init__(self, uri: str, name: str = NAME) -> None:
        self.uri, self.name = uri, name
        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def register(
        self, model: ModelFile, who: str, why: str, semver: str | None = None, run_id: str | None = None
    ) -> ModelVersion:
        """Log a model file to a run (a new one, if `run_id` is None), and make it the candidate.

        Raises:
            TrainingError: the semantic version is none or taken, or MLflow would keep other bytes than the file's.
        """
        semver = ".".join(map(str, _parts(semver))) if semver else self.next_semver(model.metadata)
        if any(version.tags.get("semver") == semver for version in self.versions()):
            raise TrainingError(f"version {semver} of {self.name} exists; name another with --version")
        version = self._log(model, run_id)
        tags = {"semver": semver, "sha256": model.sha256, "data_hash": model.metadata.data_hash, "stage": CANDIDATE}
        for key, value in (tags | {"code_revision": model.metadata.code_revision}).items():
            self.client.set_model_version_tag(self.name, version.version, key, value)
        self._check_bytes(version, model)
        self.client.set_registered_model_alias(self.name, CANDIDATE, version.version)
        self.note(version, "registered", who, why)
        return self.client.get_model_version(self.name, version.version)

    def versions(self) -> list[ModelVersion]:
        """Return all versions, oldest first."""
        found = self.client.search_model_versions(f"name = '{self.name}'")
        return sorted(found, key=lambda version: int(version.version))

    def by_alias(self, alias: str) -> ModelVersion | None:
        """Return the version that an alias names, if any."""
        try:
            return self.client.get_model_version_by_alias(self.name, alias)
        except MlflowException:
            return None

    def find(self, said: str | None) -> ModelVersion:
        """Return a version by its number, its semantic version, or an alias; the candidate if None is said.

        Raises:
            TrainingError: there is none.
        """
        wanted = said or CANDIDATE
        for version in self.versions():
            if wanted in (_number(version), version.tags.get("semver")):
                return version
        named = self.by_alias(wanted)
        if named is None:
            raise TrainingError(
                f"{self.uri}: {self.name} has no version {wanted!r}; `python -m training register` makes a candidate, "
                "`python -m training history` lists what there is"
            )
        return named

    def fetch(self, version: ModelVersion, folder: Path) -> ModelFile:
        """Download a version's model file into `folder` and open it; raises ModelFileError where it is not sound."""
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(self._download(version, folder).rglob(_FILE))
        if not found:
            raise TrainingError(f"{self.name} {version.version} holds no {_FILE}; register it again")
        model = open_model(found[0])
        if version.tags.get("sha256") not in (None, model.sha256):
            raise TrainingError(f"{self.name} {version.version}: the file is not the one that was registered")
        return model

    def write_findings(self, version: ModelVersion, findings: Iterable[Finding]) -> None:
        """Write each gate's figure on a version, as tags and as `gates.json` of its run."""
        found = list(findings)
        for finding in found:
            text = f"{'pass' if finding.passed else 'FAIL'} {finding.figure:.4g} ({finding.limit})"
            self.client.set_model_version_tag(self.name, version.version, _GATE + finding.gate, text)
        if version.run_id:
            content = json.dumps([asdict(finding) for finding in found], indent=2)
            self.client.log_text(version.run_id, content, f"gates/{version.version}.json")

    def promote(self, version: ModelVersion, who: str, why: str) -> None:
        """Make a version the champion, and archive the one that was."""
        champion = self.by_alias(CHAMPION)
        if champion is not None and champion.version == version.version:
            raise TrainingError(f"{self.name} {version.tags.get('semver', version.version)} is the champion already")
        if champion is not None:
            self.client.set_registered_model_alias(self.name, PREVIOUS, champion.version)
            self._set_stage(champion, "archived")
            self.note(champion, "archived", who, f"version {version.tags.get('semver', version.version)} was promoted")
        self.client.set_registered_model_alias(self.name, CHAMPION, version.version)
        candidate = self.by_alias(CANDIDATE)
        if candidate is not None and candidate.version == version.version:
            self.client.delete_registered_model_alias(self.name, CANDIDATE)
        self._set_stage(version, CHAMPION)
        self.note(version, "promoted", who, why)

    def refuse(self, version: ModelVersion, who: str, why: str) -> None:
        """Write on a version that the gates refused it; aliases stay as they are."""
        self._set_stage(version, "refused")
        self.note(version, "refused", who, why)

    def rollback(self, who: str, why: str, to: str | None = None) -> tuple[ModelVersion, ModelVersion]:
        """Make the champion before this one the champion again; return (the one that goes, the one that comes).

        Raises:
            TrainingError: there is no champion, or none before it.
        """
        champion = self.by_alias(CHAMPION)
        if champion is None:
            raise TrainingError(f"{self.uri}: {self.name} has no champion to roll back")
        target = self.find(to) if to else self._champion_before(champion)
        if target.version == champion.version:
            raise TrainingError(f"{self.name} {target.tags.get('semver', target.version)} is the champion already")
        self.client.set_registered_model_alias(self.name, CHAMPION, target.version)
        self.client.set_registered_model_alias(self.name, PREVIOUS, champion.version)
        self._set_stage(champion, "rolled back")
        self._set_stage(target, CHAMPION)
        self.note(champion, "rolled back", who, why)
        self.note(target, "promoted", who, f"version {champion.tags.get('semver', champion.version)} was rolled back")
        return champion, target

    def history(self) -> list[Event]:
        """Return all events of all versions, oldest first."""
        found = [
            Event(**json.loads(text))
            for version in self.versions()
            for key, text in version.tags.items()
            if key.startswith(_EVENT)
        ]
        return sorted(found, key=lambda event: event.when)

    def note(self, version: ModelVersion, what: str, who: str, why: str) -> None:
        """Write an event on a version."""
        when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")  # a tag's name may hold no plus
        event = Event(when, what, _number(version), self._semver_of(version), who, why)
        self.client.set_model_version_tag(self.name, version.version, _EVENT + when, json.dumps(asdict(event)))

    def next_semver(self, metadata: ModelMetadata) -> str:
        """Return the version after the newest: major where the classes differ, minor where the data do, else patch."""
        known = [version for version in self.versions() if version.tags.get("semver")]
        if not known:
            return "1.0.0"
        newest = max(known, key=lambda version: _parts(version.tags["semver"]))
        major, minor, patch = _parts(newest.tags["semver"])
        if newest.tags.get("classes") != _classes(metadata):
            return f"{major + 1}.0.0"
        if newest.tags.get("data_hash") != metadata.data_hash:
            return f"{major}.{minor + 1}.0"
        return f"{major}.{minor}.{patch + 1}"

    def _log(self, model: ModelFile, run_id: str | None) -> ModelVersion:
        """Log the file as MLflow's ONNX flavour, with signature and input example, and register it."""
        mlflow.set_tracking_uri(self.uri)
        if run_id is None:
            mlflow.set_experiment(EXPERIMENT)
        with mlflow.start_run(run_id=run_id, run_name=None if run_id else f"register {model.metadata.version}"):
            logged = mlflow.onnx.log_model(
                onnx.load(str(model.path)),
                name="model",
                signature=signature_of(model.metadata),
                input_example={INPUT: np.zeros((1, len(model.metadata.bands), TILE_SIZE, TILE_SIZE), np.uint16)},
                # Said outright, since MLflow would else load the model in a process of its own to find out.
                pip_requirements=[f"onnxruntime=={onnxruntime.__version__}", f"numpy=={np.__version__}"],
                onnx_execution_providers=["CPUExecutionProvider"],
                save_as_external_data=False,
            )
        if not self.client.search_registered_models(f"name = '{self.name}'"):
            self.client.create_registered_model(self.name)
        tags = {"classes": _classes(model.metadata)}
        return self.client.create_model_version(
            self.name, logged.model_uri, run_id=logged.run_id, tags=tags, model_id=logged.model_id
        )

    def _check_bytes(self, version: ModelVersion, model: ModelFile) -> None:
        """What is served must be what was measured, to the byte."""
        with tempfile.TemporaryDirectory(prefix="sentile-registry-") as folder:
            kept = next(self._download(version, Path(folder)).rglob(_FILE))
            if kept.read_bytes() != model.path.read_bytes():
                raise TrainingError(f"{model.path}: MLflow keeps other bytes than the file's; export it again")

    def _download(self, version: ModelVersion, folder: Path) -> Path:
        return Path(mlflow.artifacts.download_artifacts(version.source, dst_path=str(folder), tracking_uri=self.uri))

    def _champion_before(self, champion: ModelVersion) -> ModelVersion:
        gone = {event.version for event in self.history() if event.what == "rolled back"} | {_number(champion)}
        before = [event.version for event in self.history() if event.what == "promoted" and event.version not in gone]
        if not before:
            raise TrainingError(
                f"{self.name} {self._semver_of(champion)} has no champion before it; name one with --to"
            )
        return self.client.get_model_version(self.name, before[-1])

    def _set_stage(self, version: ModelVersion, stage: str) -> None:
        self.client.set_model_version_tag(self.name, version.version, "stage", stage)

    def _semver_of(self, version: ModelVersion) -> str:
        tags = self.client.get_model_version(self.name, version.version).tags
        return str(tags.get("semver", ""))


def signature_of(metadata: ModelMetadata) -> ModelSignature:
    """Return what MLflow is told of a model file's input and first output."""
    tiles = TensorSpec(np.dtype("uint16"), (-1, len(metadata.bands), TILE_SIZE, TILE_SIZE), INPUT)
    shares = TensorSpec(np.dtype("float32"), (-1, len(metadata.classes)), "probabilities")
    return ModelSignature(inputs=Schema([tiles]), outputs=Schema([shares]))


def _number(version: ModelVersion) -> str:
    """Return the registry's number of a version: MLflow's stores give it as text or as a number."""
    return str(version.version)


def _classes(metadata: ModelMetadata) -> str:
    return ",".join(metadata.classes)


def _parts(semver: str) -> tuple[int, int, int]:
    """Return the numbers of a semantic version; raises TrainingError for anything else."""
    try:
        major, minor, patch = (int(part) for part in semver.split("."))
    except ValueError as error:
        raise TrainingError(f"{semver!r} is no semantic version; say MAJOR.MINOR.PATCH, e.g. 1.2.0") from error
    return major, minor, patch
