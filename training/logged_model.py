"""A model file in MLflow, in MLflow's ONNX flavour: with signature, input example, and its INT8 file beside
it.

It is logged when a run exports it, and a version in the registry is that very logged model.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import mlflow
import numpy as np
import onnx
import onnxruntime
from mlflow.data.schema import TensorDatasetSchema
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModel, LoggedModelOutput, LoggedModelStatus
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from tilewise.datasets.core.tile import BAND_COUNT, TILE_SIZE
from tilewise.datasets.packs.pack import Pack
from tilewise.models.model_file import CPU_PROVIDER, INPUT, ModelFile, ModelMetadata, int8_of

_MAX_DIGEST = 36  # characters, as MLflow's stores bound them; the whole hash is in the profile


def dataset_inputs(pack: Pack, contexts: Mapping[str, str]) -> list[DatasetInput]:
    """Return a dataset input for each split of a pack.

    Args:
        contexts: what each split is for, by its name, e.g. {"train": "training"}; splits without tiles are
            left out.
    """
    present = {split: purpose for split, purpose in contexts.items() if len(pack.rows(split))}
    return [
        DatasetInput(_describe(pack, split), [InputTag(MLFLOW_DATASET_CONTEXT, purpose)])
        for split, purpose in present.items()
    ]


def _describe(pack: Pack, split: str) -> Dataset:
    tiles = TensorSpec(np.dtype("uint16"), (-1, BAND_COUNT, TILE_SIZE, TILE_SIZE), "tiles")
    schema = TensorDatasetSchema(Schema([tiles]), Schema([TensorSpec(np.dtype("int64"), (-1,), "labels")]))
    return Dataset(
        name=f"{pack.root.name}/{split}",
        digest=pack.summary.data_hash[:_MAX_DIGEST],
        source_type="local",
        source=json.dumps({"uri": pack.root.resolve().as_uri()}),
        schema=json.dumps(schema.to_dict()),
        profile=json.dumps(_profile(pack, split)),
    )


def _profile(pack: Pack, split: str) -> dict[str, object]:
    """Return the pack's card, with the tiles of each class and source in this split alone."""
    rows = pack.rows(split)
    card = asdict(pack.summary)
    card.pop("counts")
    counts = np.bincount(pack.labels[rows], minlength=len(pack.summary.classes))
    sources, of_source = np.unique(pack.sources[rows], return_counts=True)
    return card | {
        "split": split,
        "tiles": len(rows),
        "tiles_of_class": dict(zip(pack.summary.classes, counts.tolist(), strict=True)),
        "tiles_of_source": dict(zip(sources.tolist(), of_source.tolist(), strict=True)),
    }


FILE = "model.onnx"  # as MLflow's flavour calls it
NAME = "model"
_NO_INT8 = "none"


def log_model(client: MlflowClient, run_id: str, model: ModelFile) -> LoggedModel:
    """Return a model file as a logged model of a run; one that the run holds already, to the byte, is not
    logged again.

    Whatever is not wholly uploaded stays without status READY, and is never taken for a model.
    """
    run = client.get_run(run_id)
    tags = digests(model)
    for known in run.outputs.model_outputs if run.outputs else ():
        found = client.get_logged_model(known.model_id)
        if found.status == LoggedModelStatus.READY and tags.items() <= found.tags.items():
            return found
    made = client.create_logged_model(run.info.experiment_id, NAME, source_run_id=run_id, tags=tags)
    client.log_outputs(run_id, [LoggedModelOutput(made.model_id, step=0)])
    with tempfile.TemporaryDirectory(prefix="tilewise-log-") as folder:
        _save(model, Path(folder, NAME), Model(run_id=run_id, model_id=made.model_id))
        client.log_model_artifacts(made.model_id, str(Path(folder, NAME)))
    return client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)


def digests(model: ModelFile) -> dict[str, str]:
    """Return SHA-256 of a model file and of the INT8 file beside it (`none` where there is none), as tags."""
    int8 = int8_of(model.path)
    known = hashlib.sha256(int8.read_bytes()).hexdigest() if int8.is_file() else _NO_INT8
    return {"sha256": model.sha256, "int8_sha256": known}


def signature_of(metadata: ModelMetadata) -> ModelSignature:
    """Return what MLflow is told of a model file's input and first output."""
    tiles = TensorSpec(np.dtype("uint16"), (-1, len(metadata.bands), TILE_SIZE, TILE_SIZE), INPUT)
    shares = TensorSpec(np.dtype("float32"), (-1, len(metadata.classes)), "probabilities")
    return ModelSignature(inputs=Schema([tiles]), outputs=Schema([shares]))


def _save(model: ModelFile, folder: Path, card: Model) -> None:
    """Write the folder that MLflow keeps: `MLmodel`, signature, example, requirements, and the files
    themselves."""
    mlflow.onnx.save_model(
        onnx.load(str(model.path)),
        str(folder),
        mlflow_model=card,
        signature=signature_of(model.metadata),
        input_example={INPUT: np.zeros((1, len(model.metadata.bands), TILE_SIZE, TILE_SIZE), np.uint16)},
        # Said outright, since MLflow would else load the model in a process of its own to find out.
        pip_requirements=[f"onnxruntime=={onnxruntime.__version__}", f"numpy=={np.__version__}"],
        onnx_execution_providers=[CPU_PROVIDER],
        save_as_external_data=False,
    )
    # Serving holds the file against its digest, and another writer of protobufs may order them otherwise.
    shutil.copyfile(model.path, folder / FILE)
    if int8_of(model.path).is_file():
        shutil.copyfile(int8_of(model.path), int8_of(folder / FILE))
