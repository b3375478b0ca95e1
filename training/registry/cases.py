"""From the registry to the gates: which model is judged, against which champion, on which tiles."""

from pathlib import Path

import click
from mlflow.entities.model_registry import ModelVersion

from tilewise.datasets.packs.pack import Pack
from tilewise.models.model_file import ModelFile
from tilewise.training.evaluate.outputs import open_single_threaded
from tilewise.training.registry.gates import Case, GateSettings
from tilewise.training.registry.registry import Registry


def case_of(
    candidate: Path,
    registry: Registry,
    champion: ModelVersion | None,
    folder: Path,
    pack: Pack,
    settings: GateSettings,
) -> Case:
    """Return the case of a model file against the champion, which is fetched into `folder`.

    A champion that does not know all classes of the tiles is no measure: it is said, and left out.
    """
    serving: ModelFile | None = None
    if champion is not None:
        serving = open_single_threaded(registry.fetch(champion, folder / "champion").path)
        if not set(pack.summary.classes) <= set(serving.metadata.classes):
            click.echo("the champion does not know all classes of these tiles, so nothing is compared with it")
            serving = None
    return Case(open_single_threaded(candidate), serving, pack, settings)


def circumstances(case: Case, champion: ModelVersion | None) -> dict[str, str]:
    """Return what a version's figures were measured on and against, for its tags."""
    return {
        "data_hash": case.pack.summary.data_hash,
        "split": case.settings.split,
        "tiles": str(len(case.rows)),
        "champion": champion.tags.get("semver", str(champion.version)) if champion and case.champion else "none",
    }
