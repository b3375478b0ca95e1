"""What a run saw, as MLflow's dataset inputs: which pack, by the hash of pixels and labels, which split, from where.

Only this description goes to MLflow; the bytes stay where they are, under DVC or in the pack's folder.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
from mlflow.data.schema import TensorDatasetSchema
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.types import Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from datasets.pack import Pack
from datasets.tile import BAND_COUNT, TILE_SIZE

_MOST_DIGEST = 36  # characters, as MLflow's stores bound them; the whole hash is in the profile


def dataset_inputs(pack: Pack, contexts: Mapping[str, str]) -> list[DatasetInput]:
    """Return a dataset input for each split of a pack.

    Args:
        contexts: what each split is for, by its name, e.g. {"train": "training"}; splits without tiles are left out.
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
        digest=pack.summary.data_hash[:_MOST_DIGEST],
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
