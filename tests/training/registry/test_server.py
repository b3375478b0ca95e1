"""The life of a model over HTTP, against a real `mlflow server`: a run tracked, versions registered,
promoted, rolled back and told of."""

import json
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import psycopg
import pytest
import yaml
from click.testing import CliRunner, Result
from mlflow.tracking import MlflowClient
from monitoring import PROJECT, running
from postgres import postgres, programs

from tilewise.bento.inference.precision import Precision
from tilewise.bento.serving.releases import AliasSource
from tilewise.cli import main
from tilewise.datasets.packs.pack import Pack
from tilewise.models.export.quantise import rewrite_metadata
from tilewise.models.model_file import int8_of, open_model
from tilewise.training.cli import main as train
from tilewise.training.registry.registry import Registry

pytestmark = pytest.mark.slow

MakeModel = Callable[..., Path]
_START_SECONDS = 120
GATES = """
floor: {accuracy: 0.0, macro_f1: 0.0, class_recall: 0.0}
int8: 0.005
approval: [Grace, Barbara]
"""


@pytest.fixture(scope="module")
def store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the server keeps runs: PostgreSQL, as deploy/compose.yaml has it, or a SQLite file where there is
    none."""
    if (installed := programs()) is not None:
        with postgres(installed) as uri:
            yield uri
        return
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    shutil.copyfile(empty_store, file)
    yield f"sqlite:///{file}"


@pytest.fixture(scope="module")
def server(store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of its own, which is told what deploy/compose.yaml tells it."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    composed = yaml.safe_load((PROJECT / "deploy/compose.yaml").read_text(encoding="utf-8"))["services"][
        "mlflow"
    ]
    other = {"--host": "127.0.0.1", "--port": port, "--artifacts-destination": str(folder / "kept")}
    told = [word for word in composed["command"][1:] if word.split("=")[0] not in other]
    command = [sys.executable, "-m", "mlflow", *told, *(f"{name}={value}" for name, value in other.items())]
    settings = composed["environment"] | {"MLFLOW_BACKEND_STORE_URI": store}
    settings |= {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"
    }  # nothing here uses its jobs, and they start slowly
    url = f"http://127.0.0.1:{port}"
    with running(
        "mlflow", [*command, "--workers=1"], folder, f"{url}/health", settings, patience=_START_SECONDS
    ):
        yield url


@pytest.fixture(scope="module")
def run(server: str, pack_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run, tracked by the server; long enough for the monitor to take and send a
    sample."""
    out = tmp_path_factory.mktemp("run") / "first"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.02")
        sizes = {"widths": "[8,16]", "depths": "[1,1]", "stem": "[8]"}
        train(
            [
                *(f"--model.backbone.init_args.{name}={size}" for name, size in sizes.items()),
                *("--data.batch_size=24", "--trainer.precision=32-true", "--trainer.max_epochs=4"),
                *(f"--data.pack={pack_folder}", f"--out={out}"),
                *(f"--tracking.uri={server}", "--quantisation.enabled=false"),
            ]
        )
    return out


def run_id(run: Path) -> str:
    return str(json.loads((run / "mlflow.json").read_text()).popitem()[1])


def command(server: str, *arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments), "--tracking-uri", server])


def test_a_team_s_runs_and_models_are_kept_in_postgresql(server: str, run: Path, store: str) -> None:
    if not store.startswith("postgresql"):
        pytest.skip(
            "PostgreSQL is not installed (apt-get install postgresql): the server keeps a SQLite file"
        )
    with psycopg.connect(store.replace("+psycopg", "")) as connection:
        (uri,) = connection.execute(
            "SELECT artifact_uri FROM runs WHERE run_uuid = %s", [run_id(run)]
        ).fetchone() or ("",)
        (models,) = connection.execute("SELECT count(*) FROM logged_models").fetchone() or (0,)
    assert uri.startswith("mlflow-artifacts:/"), "artifacts go through the server"
    assert models == 1


def test_a_run_tells_what_it_saw_and_on_what_machine_and_shows_its_answers(
    server: str, run: Path, pack_folder: Path
) -> None:
    client = MlflowClient(server)
    found = client.get_run(run_id(run))
    seen = {each.dataset.name: each for each in found.inputs.dataset_inputs}
    purposes = {name: each.tags[0].value for name, each in seen.items()}
    assert purposes == {"pack/train": "training", "pack/val": "validation", "pack/test": "test"}
    dataset = seen["pack/train"].dataset
    assert open_model(run / "model.onnx").metadata.data_hash.startswith(dataset.digest)
    assert json.loads(dataset.source) == {"uri": pack_folder.resolve().as_uri()}
    profile = json.loads(dataset.profile)
    assert profile["tiles"] == sum(profile["tiles_of_class"].values()) == len(Pack(pack_folder).rows("train"))
    assert [name for name in found.data.metrics if name.startswith("system/cpu")]
    assert "test/all/accuracy" in found.data.metrics
    pictures = {item.path for item in client.list_artifacts(run_id(run), "evaluation")}
    assert "evaluation/confusion-all.png" in pictures


def test_the_model_of_a_run_is_logged_with_signature_and_example_and_answers(server: str, run: Path) -> None:
    mlflow.set_tracking_uri(server)
    client = MlflowClient(server)
    (output,) = client.get_run(run_id(run)).outputs.model_outputs
    logged = client.get_logged_model(output.model_id)
    assert logged.status == "READY"
    loaded = mlflow.pyfunc.load_model(logged.model_uri)
    assert loaded.metadata.signature.inputs.input_names() == ["tiles"]
    answer = loaded.predict(loaded.input_example)
    assert answer["probabilities"].shape == (1, 10)


def test_versions_go_from_candidate_to_champion_and_back_and_the_history_tells(
    server: str,
    run: Path,
    judged: Path,
    make_model: MakeModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    (tmp_path / "gates.yaml").write_text(GATES)
    promote = ("promote", "--data", judged, "--gates", tmp_path / "gates.yaml", "--no-bento")

    done = command(server, "register", "--run", run, "--by", "Ada")
    assert done.exit_code == 0, done.output
    registry = Registry(server)
    (output,) = registry.client.get_run(run_id(run)).outputs.model_outputs
    assert registry.find(None).source == f"models:/{output.model_id}", "the run's own, and not logged twice"

    nobody = command(server, *promote, "--approve", "Ada")
    assert nobody.exit_code == 1
    assert "one of Grace, Barbara must approve" in nobody.stderr
    assert command(server, *promote, "--approve", "Grace", "--by", "Ada").exit_code == 0
    tags = registry.by_alias("champion").tags  # type: ignore[union-attr]
    assert (tags["stage"], tags["approved_by"], tags["promoted_by"]) == ("champion", "Grace", "Ada")
    assert tags["gate.floor/accuracy"].startswith("pass ")
    assert (tags["measured.tiles"], tags["measured.champion"]) == ("120", "none")

    better = with_int8(make_model())
    assert "1.1.0 (version 2)" in command(server, "register", "--model", better).stdout
    second = command(server, *promote, "--approve", "Barbara")
    assert second.exit_code == 0, second.output
    version = registry.by_alias("champion")
    assert version is not None
    assert version.tags["gate.int8"].startswith("pass 0 ")
    assert version.tags["measured.champion"] == "1.0.0"
    followed = AliasSource("models:/tilewise@champion", Precision.INT8)
    assert followed.find().path.read_bytes() == int8_of(better).read_bytes()

    assert command(server, "rollback", "--why", "rivers are taken for roads").exit_code == 0
    assert followed.find().path.read_bytes() == (run / "model.onnx").read_bytes()
    events = [json.loads(line) for line in command(server, "history", "--json").stdout.splitlines()]
    assert [(event["semver"], event["what"]) for event in events] == [
        ("1.0.0", "registered"),
        ("1.0.0", "promoted"),
        ("1.1.0", "registered"),
        ("1.1.0", "promoted"),
        ("1.0.0", "archived"),
        ("1.1.0", "rolled back"),
        ("1.0.0", "promoted"),
    ]
    (row,) = (json.loads(line) for line in command(server, "runs", "--json").stdout.splitlines())
    assert (row["run"], row["version"], row["data"].split()[0]) == ("first", "1.0.0", "pack")
    assert "all/accuracy" in row


def with_int8(model: Path) -> Path:
    """Put a file beside `model` that says it is its INT8 form, and answers the same."""
    opened = open_model(model)
    overrides = opened.metadata.model_copy(update={"precision": "int8", "quantised_from": opened.sha256})
    shutil.copyfile(model, int8_of(model))
    rewrite_metadata(int8_of(model), overrides)
    return model
