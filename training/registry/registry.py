"""Model versions in MLflow's registry: candidate, champion, archived; and the history of who moved them when
and why.

Services follow aliases: `candidate`, `champion`, `previous`. Tags hold the state of a version: `semver`,
    `stage`, a
figure for each gate, and one tag for each event. Everything is stored in MLflow.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.packs.pack import Pack
from tilewise.models.model_file import ModelFile, ModelMetadata, open_model
from tilewise.training.logged_model import FILE, digests, log_model
from tilewise.training.registry.gates import GateContext, GateResult, GateSettings, open_context
from tilewise.training.tracking import Tracking, experiment_id

NAME = "tilewise"
CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
_EVENT = "event."
_GATE = "gate."
_MEASURED = "measured."


@dataclass(frozen=True, slots=True)
class Event:
    """An event in the history of a version.

    Attributes:
        when: ISO 8601, UTC, to the microsecond.
        what: `registered`, `passed`, `refused`, `promoted`, `archived` or `rolled back`.
        version: the registry's number of the version.
        semver: the version's semantic version.
        who: the person or program that caused it.
        why: the reason given.
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
        self,
        model: ModelFile,
        who: str,
        why: str,
        semver: str | None = None,
        run_id: str | None = None,
        *,
        candidate: bool = True,
    ) -> ModelVersion:
        """Register a model file, with the INT8 file beside it, as a version; make it the candidate.

        The version is the run's own logged model where the run has this file; else the file is logged, to a
        run of its own if `run_id` is None. The former candidate is archived.

        Args:
            candidate: False: the candidate stays as it is. Services may try the candidate on live requests,
                so a model that the gates refuse must not become it.

        Raises:
            TrainingError: the semantic version is invalid or taken.
        """
        semver = ".".join(map(str, _parts(semver))) if semver else self.next_semver(model.metadata)
        if any(version.tags.get("semver") == semver for version in self.versions()):
            raise TrainingError(f"version {semver} of {self.name} exists; name another with --version")
        version = self._create(model, semver, run_id or self._new_run(semver))
        if candidate:
            self.make_candidate(version, who)
        self.note(version, "registered", who, why)
        return self.client.get_model_version(self.name, version.version)

    def make_candidate(self, version: ModelVersion, who: str) -> None:
        """Make a version the candidate, and archive the former one; nothing changes if it is already."""
        before = self.by_alias(CANDIDATE)
        if before is not None and before.version == version.version:
            return
        if before is not None and before.tags.get("stage") == CANDIDATE:
            self._archive(before, who, f"version {version.tags['semver']} was registered")
        self.client.set_registered_model_alias(self.name, CANDIDATE, version.version)

    def versions(self) -> list[ModelVersion]:
        """Return all versions, oldest first."""
        found = self.client.search_model_versions(f"name = '{self.name}'")
        return sorted(found, key=lambda version: int(version.version))

    def by_alias(self, alias: str) -> ModelVersion | None:
        """Return the version of an alias, if there is one."""
        try:
            return self.client.get_model_version_by_alias(self.name, alias)
        except MlflowException:
            return None

    def find(self, version: str | None) -> ModelVersion:
        """Return a version by its number, its semantic version, or an alias; None: the candidate.

        Raises:
            TrainingError: there is none.
        """
        wanted = version or CANDIDATE
        for known in self.versions():
            if wanted in (_number(known), known.tags.get("semver")):
                return known
        named = self.by_alias(wanted)
        if named is None:
            raise TrainingError(
                f"{self.uri}: {self.name} has no version {wanted!r}; `tilewise register` makes a candidate, "
                "`tilewise history` lists what there is"
            )
        return named

    def fetch(self, version: ModelVersion, folder: Path) -> ModelFile:
        """Download a version's model file into `folder` and open it.

        Raises:
            ModelFileError: the file is invalid.
            TrainingError: there is no file, or not the one that was registered.
        """
        folder.mkdir(parents=True, exist_ok=True)
        found = min(self._download(version, folder).rglob(FILE), default=None)
        if found is None:
            raise TrainingError(f"{self.name} {version.version} has no {FILE}; register it again")
        model = open_model(found)
        self._check_digests(version, model)
        return model

    def gate_context(
        self, candidate: Path, champion: ModelVersion | None, folder: Path, pack: Pack, settings: GateSettings
    ) -> GateContext:
        """Return what the gates compare: a model file and the champion, which is downloaded into `folder`."""
        serving = self.fetch(champion, folder / "champion").path if champion else None
        return open_context(candidate, serving, pack, settings)

    def write_results(self, version: ModelVersion, results: Iterable[GateResult], **measured: str) -> None:
        """Write each gate's figure on a version, as tags and as `gates/<version>.json` of its run.

        Args:
            measured: what was measured on and against, as further tags. Tags of earlier measurements are
                removed.
        """
        found = list(results)
        for key in self.client.get_model_version(self.name, version.version).tags:
            if key.startswith((_GATE, _MEASURED)):
                self.client.delete_model_version_tag(self.name, version.version, key)
        for key, value in measured.items():
            self.client.set_model_version_tag(self.name, version.version, _MEASURED + key, value)
        for result in found:
            text = f"{'pass' if result.passed else 'FAIL'} {result.figure:.4g} ({result.limit})"
            self.client.set_model_version_tag(self.name, version.version, _GATE + result.gate, text)
        if version.run_id:
            content = json.dumps([asdict(result) for result in found], indent=2)
            self.client.log_text(version.run_id, content, f"gates/{version.version}.json")

    def tag(self, version: ModelVersion, **tags: str) -> None:
        """Write tags on a version."""
        for key, value in tags.items():
            self.client.set_model_version_tag(self.name, version.version, key, value)

    def promote(self, version: ModelVersion, who: str, why: str) -> None:
        """Make a version the champion, whichever is it now, and archive the former champion."""
        self.promote_over(self.by_alias(CHAMPION), version, who, why)

    def promote_over(self, measured: ModelVersion | None, version: ModelVersion, who: str, why: str) -> None:
        """Make a version the champion if the champion is still `measured`, which is archived.

        MLflow cannot move an alias on a condition, so the alias moves right after the check, before all else.

        Args:
            measured: the champion that the version was measured against; None: there was none.

        Raises:
            TrainingError: another version is the champion now; nothing was changed.
        """
        self.refuse_the_champion(version)
        self.require_champion(measured)
        self.client.set_registered_model_alias(self.name, CHAMPION, version.version)
        self.note(version, "promoted", who, why)  # rollback goes by the history
        self.tag(version, stage=CHAMPION)
        if measured is not None:
            self.client.set_registered_model_alias(self.name, PREVIOUS, measured.version)
            self._archive(
                measured, who, f"version {version.tags.get('semver', version.version)} was promoted"
            )
        candidate = self.by_alias(CANDIDATE)
        if candidate is not None and candidate.version == version.version:
            self.client.delete_registered_model_alias(self.name, CANDIDATE)

    def refuse_the_champion(self, version: ModelVersion) -> None:
        """Raise TrainingError if a version is already the champion."""
        champion = self.by_alias(CHAMPION)
        if champion is not None and champion.version == version.version:
            raise TrainingError(
                f"{self.name} {version.tags.get('semver', version.version)} is the champion already"
            )

    def require_champion(self, measured: ModelVersion | None) -> None:
        """Raise TrainingError unless the champion is still the one that a candidate was measured against.

        Args:
            measured: the champion at the time of the measurement; None: there was none.
        """
        champion = self.by_alias(CHAMPION)
        if (champion and champion.version) != (measured and measured.version):
            now = self._semver_of(champion) if champion else "none"
            before = self._semver_of(measured) if measured else "none"
            raise TrainingError(
                f"the champion of {self.name} changed from {before} to {now} while gates were measured, so "
                f"nothing "
                "was promoted; promote again, to measure against the new one"
            )

    def refuse(self, version: ModelVersion, who: str, why: str) -> None:
        """Mark a version as refused by the gates; aliases stay as they are."""
        self.tag(version, stage="refused")
        self.note(version, "refused", who, why)

    def rollback(self, who: str, why: str, to: str | None = None) -> tuple[ModelVersion, ModelVersion]:
        """Make the former champion, or the version `to`, the champion again; return (the old one, the new
        one).

        Raises:
            TrainingError: there is no champion, or none before it.
        """
        champion = self.by_alias(CHAMPION)
        if champion is None:
            raise TrainingError(f"{self.uri}: {self.name} has no champion to roll back")
        target = self.find(to) if to else self._champion_before(champion)
        self.refuse_the_champion(target)
        self.client.set_registered_model_alias(self.name, CHAMPION, target.version)
        self.client.set_registered_model_alias(self.name, PREVIOUS, champion.version)
        self.tag(champion, stage="rolled back")
        self.tag(target, stage=CHAMPION)
        self.note(champion, "rolled back", who, why)
        self.note(
            target,
            "promoted",
            who,
            f"version {champion.tags.get('semver', champion.version)} was rolled back",
        )
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
        self.client.set_model_version_tag(
            self.name, version.version, _EVENT + when, json.dumps(asdict(event))
        )

    def next_semver(self, metadata: ModelMetadata) -> str:
        """Return the version after the newest.

        Major: other classes, or other bands that the network uses. Patch: the same trained weights, so that
            only
        calibration differs. Minor: trained again. Without a digest of the weights, the data decide.
        """
        known = [version for version in self.versions() if version.tags.get("semver")]
        if not known:
            return "1.0.0"
        newest = max(known, key=lambda version: _parts(version.tags["semver"]))
        major, minor, patch = _parts(newest.tags["semver"])
        now = _origin(metadata)
        # A version from before these tags were written is taken to have the same.
        if any(newest.tags.get(key, now[key]) != now[key] for key in ("classes", "bands")):
            return f"{major + 1}.0.0"
        key = "weights" if newest.tags.get("weights") and now["weights"] else "data_hash"
        if newest.tags.get(key) != now[key]:
            return f"{major}.{minor + 1}.0"
        return f"{major}.{minor}.{patch + 1}"

    def _create(self, model: ModelFile, semver: str, run_id: str) -> ModelVersion:
        logged = log_model(self.client, run_id, model)
        if not self.client.search_registered_models(f"name = '{self.name}'"):
            self.client.create_registered_model(self.name)
        tags = {"semver": semver, "stage": CANDIDATE, **digests(model), **_origin(model.metadata)}
        # A store in SQLite looks the logged model up at the process's address, whatever the client's
        # (mlflow/store/model_registry/sqlalchemy_store.py, create_model_version).
        mlflow.set_tracking_uri(self.uri)
        return self.client.create_model_version(
            self.name, logged.model_uri, run_id=run_id, tags=tags, model_id=logged.model_id
        )

    def _new_run(self, semver: str) -> str:
        """Return a new run, for a model file that no run of this store exported."""
        run = self.client.create_run(experiment_id(Tracking(uri=self.uri)), run_name=f"register {semver}")
        self.client.set_terminated(run.info.run_id)
        return str(run.info.run_id)

    def _check_digests(self, version: ModelVersion, model: ModelFile) -> None:
        """Refuse a file that is not, to the byte, the one that was registered, or one registered without
        digests."""
        for key, digest in digests(model).items():
            if version.tags.get(key) != digest:
                which = f"{self.name} {version.version}"
                raise TrainingError(
                    f"{which}: the file is not the one that was registered ({key}); register it again"
                )

    def _download(self, version: ModelVersion, folder: Path) -> Path:
        return Path(
            mlflow.artifacts.download_artifacts(version.source, dst_path=str(folder), tracking_uri=self.uri)
        )

    def _champion_before(self, champion: ModelVersion) -> ModelVersion:
        """Return the champion before this one, by the history; a rollback takes back the promotions after its
        target."""
        before = [number for number in _champions(self.history()) if number != _number(champion)]
        if not before:
            raise TrainingError(
                f"{self.name} {self._semver_of(champion)} has no champion before it; name one with --to"
            )
        return self.client.get_model_version(self.name, before[-1])

    def _archive(self, version: ModelVersion, who: str, why: str) -> None:
        self.tag(version, stage="archived")
        self.note(version, "archived", who, why)

    def _semver_of(self, version: ModelVersion) -> str:
        tags = self.client.get_model_version(self.name, version.version).tags
        return str(tags.get("semver", ""))


def _champions(events: Iterable[Event]) -> list[str]:
    """Return the numbers of the champions in order, the present one last, without those that were rolled
    back."""
    line: list[str] = []
    rolled_back = False
    for event in events:
        if event.what == "rolled back":
            line, rolled_back = line[:-1], True
        elif event.what == "promoted":
            if rolled_back and event.version in line:
                line = line[: len(line) - line[::-1].index(event.version)]
            else:
                line.append(event.version)
            rolled_back = False
    return line


def _number(version: ModelVersion) -> str:
    """Return the registry's number of a version as text; some of MLflow's stores give an integer."""
    return str(version.version)


def _origin(metadata: ModelMetadata) -> dict[str, str]:
    """Return what semantic versions depend on, and the origin of the model, as tags."""
    return {
        "classes": ",".join(metadata.classes),
        "bands": ",".join(metadata.trained_bands),
        "weights": metadata.weights,
        "data_hash": metadata.data_hash,
        "code_revision": metadata.code_revision,
    }


def _parts(semver: str) -> tuple[int, int, int]:
    """Return the numbers of a semantic version; raises TrainingError for anything else."""
    try:
        major, minor, patch = (int(part) for part in semver.split("."))
    except ValueError as error:
        raise TrainingError(
            f"{semver!r} is no semantic version; use MAJOR.MINOR.PATCH, e.g. 1.2.0"
        ) from error
    return major, minor, patch
