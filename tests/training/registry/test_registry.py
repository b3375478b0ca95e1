"""Versions, aliases and history in a real MLflow store; services that follow the alias see each move."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tilewise.bento.serving.releases import AliasSource
from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.packs.pack import Pack
from tilewise.models.model_file import ModelFile, int8_of, open_model
from tilewise.training.registry.gates import GateResult, GateSettings
from tilewise.training.registry.registry import (
    CANDIDATE,
    CHAMPION,
    PREVIOUS,
    Event,
    Registry,
    _champions,
)

MakeModel = Callable[..., Path]


@pytest.fixture
def registry(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """An empty registry in a SQLite file, the working folder being where it keeps artifacts."""
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{store}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return Registry(uri)


@pytest.fixture(scope="module")
def models(make_model: MakeModel) -> list[ModelFile]:
    """Three models of different bytes."""
    return [open_model(make_model(noise=noise)) for noise in (0.0, 0.1, 0.2)]


def alias(registry: Registry, name: str) -> str | None:
    version = registry.by_alias(name)
    return version.tags["semver"] if version else None


def test_a_registered_model_is_the_candidate_to_the_byte(
    registry: Registry, models: list[ModelFile], tmp_path: Path
) -> None:
    version = registry.register(models[0], "Ada", "first")
    assert version.tags["semver"] == "1.0.0"
    assert alias(registry, CANDIDATE) == "1.0.0"
    assert alias(registry, CHAMPION) is None
    fetched = registry.fetch(version, tmp_path / "fetched")
    assert fetched.path.read_bytes() == models[0].path.read_bytes()


def test_versions_count_by_what_changed(registry: Registry, make_model: MakeModel) -> None:
    def register(**fields: object) -> str:
        return registry.register(open_model(make_model(**fields)), "Ada", "").tags["semver"]

    assert register(data_hash="a") == "1.0.0"
    assert register(data_hash="a", noise=0.1) == "1.0.1"
    assert register(data_hash="b") == "1.1.0"
    renamed = tuple(f"{name}2" for name in open_model(make_model()).metadata.classes)
    assert (
        registry.next_semver(open_model(make_model()).metadata.model_copy(update={"classes": renamed}))
        == "2.0.0"
    )


def test_a_version_is_a_patch_only_where_the_weights_are_the_same(
    registry: Registry, models: list[ModelFile], make_model: MakeModel
) -> None:
    first = models[0].metadata.model_copy(update={"weights": "w", "data_hash": "a"})
    registry.register(open_model(make_model(weights="w", data_hash="a")), "Ada", "")
    assert registry.next_semver(first) == "1.0.1", "calibrated again"
    assert registry.next_semver(first.model_copy(update={"data_hash": "b"})) == "1.0.1"
    assert registry.next_semver(first.model_copy(update={"weights": "v"})) == "1.1.0", (
        "trained again on the same data"
    )
    fewer = first.model_copy(update={"trained_bands": ("B02", "B03", "B04")})
    assert registry.next_semver(fewer) == "2.0.0", "callers' other bands no longer count"


def test_the_digest_of_the_weights_decides_only_where_both_have_one(
    registry: Registry, models: list[ModelFile], make_model: MakeModel
) -> None:
    registry.register(open_model(make_model(data_hash="a", weights="")), "Ada", "", "3.4.5")
    later = models[0].metadata.model_copy(update={"weights": "w", "data_hash": "a"})
    assert registry.next_semver(later) == "3.4.6", "the same data, as far as it can be told"
    assert registry.next_semver(later.model_copy(update={"data_hash": "b"})) == "3.5.0"
    assert registry.next_semver(later.model_copy(update={"classes": ("A", "B")})) == "4.0.0"


def test_the_candidate_before_is_archived(registry: Registry, models: list[ModelFile]) -> None:
    first = registry.register(models[0], "Ada", "")
    registry.register(models[1], "Grace", "")
    assert registry.find(str(first.version)).tags["stage"] == "archived"
    told = [(event.semver, event.what, event.who) for event in registry.history()]
    assert told == [
        ("1.0.0", "registered", "Ada"),
        ("1.0.0", "archived", "Grace"),
        ("1.0.1", "registered", "Grace"),
    ]


def test_a_version_brings_its_int8_file_and_refuses_another(
    registry: Registry, models: list[ModelFile], tmp_path: Path
) -> None:
    int8_of(models[2].path).write_bytes(b"in eight bits")
    try:
        version = registry.register(models[2], "Ada", "")
        assert int8_of(registry.fetch(version, tmp_path / "a").path).read_bytes() == b"in eight bits"
        (stored,) = (tmp_path / "mlruns").rglob("model.int8.onnx")
        stored.write_bytes(b"in other bits")
        with pytest.raises(TrainingError, match="int8_sha256"):
            registry.fetch(version, tmp_path / "b")
    finally:
        int8_of(models[2].path).unlink()


def test_a_semantic_version_is_given_once_and_must_be_one(
    registry: Registry, models: list[ModelFile]
) -> None:
    registry.register(models[0], "Ada", "", semver="3.1.4")
    with pytest.raises(TrainingError, match=r"3\.1\.4 of tilewise exists"):
        registry.register(models[1], "Ada", "", semver="3.1.4")
    with pytest.raises(TrainingError, match="'new' is no semantic version"):
        registry.register(models[1], "Ada", "", semver="new")


def test_promotion_archives_the_champion_and_rollback_brings_it_back(
    registry: Registry, models: list[ModelFile]
) -> None:
    followed = AliasSource("models:/tilewise@champion")
    for model in models[:2]:
        registry.promote(registry.register(model, "Ada", ""), "Grace", "better")
    assert (alias(registry, CHAMPION), alias(registry, PREVIOUS)) == ("1.0.1", "1.0.0")
    assert alias(registry, CANDIDATE) is None
    assert followed.find().path.read_bytes() == models[1].path.read_bytes()
    gone, comes = registry.rollback("Edsger", "it mistakes rivers for roads")
    assert (gone.tags["semver"], comes.tags["semver"]) == ("1.0.1", "1.0.0")
    assert followed.find().path.read_bytes() == models[0].path.read_bytes()
    assert registry.find("1.0.1").tags["stage"] == "rolled back"
    told = [(event.semver, event.what, event.who) for event in registry.history()]
    assert told == [
        ("1.0.0", "registered", "Ada"),
        ("1.0.0", "promoted", "Grace"),
        ("1.0.1", "registered", "Ada"),
        ("1.0.1", "promoted", "Grace"),
        ("1.0.0", "archived", "Grace"),
        ("1.0.1", "rolled back", "Edsger"),
        ("1.0.0", "promoted", "Edsger"),
    ]
    assert any(event.why == "it mistakes rivers for roads" for event in registry.history())


def test_two_rollbacks_go_two_champions_back(registry: Registry, models: list[ModelFile]) -> None:
    for model in models:
        registry.promote(registry.register(model, "Ada", ""), "Ada", "")
    registry.rollback("Ada", "")
    _, comes = registry.rollback("Ada", "")
    assert comes.tags["semver"] == "1.0.0"
    with pytest.raises(TrainingError, match="no champion before it"):
        registry.rollback("Ada", "")


def test_a_rollback_goes_to_a_champion_that_was_rolled_back_and_promoted_again(
    registry: Registry, models: list[ModelFile]
) -> None:
    first, second, third = (registry.register(model, "Ada", "") for model in models)
    registry.promote(first, "Ada", "")
    registry.promote(second, "Ada", "")
    registry.rollback("Ada", "")
    registry.promote(second, "Ada", "")
    registry.promote(third, "Ada", "")
    assert alias(registry, PREVIOUS) == "1.0.1"
    _, comes = registry.rollback("Ada", "")
    assert comes.tags["semver"] == "1.0.1"
    _, comes = registry.rollback("Ada", "")
    assert comes.tags["semver"] == "1.0.0"


def test_a_rollback_to_a_named_version_takes_back_all_promotions_after_it(
    registry: Registry, models: list[ModelFile]
) -> None:
    for model in models:
        registry.promote(registry.register(model, "Ada", ""), "Ada", "")
    registry.rollback("Ada", "", to="1.0.0")
    with pytest.raises(TrainingError, match="no champion before it"):
        registry.rollback("Ada", "")


def test_a_champion_that_changed_since_the_measurement_is_noticed(
    registry: Registry, models: list[ModelFile]
) -> None:
    registry.require_champion(None)
    first, second = (registry.register(model, "Ada", "") for model in models[:2])
    registry.promote(first, "Ada", "")
    registry.require_champion(first)
    with pytest.raises(TrainingError, match=r"changed from none to 1\.0\.0 .*promote again"):
        registry.require_champion(None)
    registry.promote(second, "Grace", "")
    with pytest.raises(TrainingError, match=r"changed from 1\.0\.0 to 1\.0\.1 .*promote again"):
        registry.require_champion(first)


def test_without_a_champion_there_is_nothing_to_roll_back(registry: Registry) -> None:
    with pytest.raises(TrainingError, match="no champion to roll back"):
        registry.rollback("Ada", "")


def test_a_version_is_found_by_number_semantic_version_or_alias(
    registry: Registry, models: list[ModelFile]
) -> None:
    registry.register(models[0], "Ada", "", semver="7.0.0")
    assert {str(registry.find(name).version) for name in ("1", "7.0.0", "candidate", None)} == {"1"}
    with pytest.raises(TrainingError, match="no version '8'"):
        registry.find("8")


def test_findings_are_written_on_the_version(registry: Registry, models: list[ModelFile]) -> None:
    version = registry.register(models[0], "Ada", "")
    registry.write_results(version, [GateResult("parity", True, 0.0, "≤ 0.1")])
    found = [
        GateResult("floor/accuracy", False, 0.412345, "≥ 0.7"),
        GateResult("latency", True, 2, "≤ 20 ms"),
    ]
    registry.write_results(version, found, split="test")
    tags = registry.find("1").tags
    assert tags["gate.floor/accuracy"] == "FAIL 0.4123 (≥ 0.7)"
    assert tags["gate.latency"] == "pass 2 (≤ 20 ms)"
    (file,) = Path("mlruns").rglob("gates/1.json")
    assert [GateResult(**result) for result in json.loads(file.read_text())] == found
    assert tags["measured.split"] == "test"
    assert "gate.parity" not in tags, "figures of an earlier measurement would be taken for this one's"
    kept = registry.client.list_artifacts(version.run_id, "gates")
    assert [item.path for item in kept] == ["gates/1.json"]


def test_a_file_that_was_changed_in_the_store_is_not_taken(
    registry: Registry, models: list[ModelFile], tmp_path: Path
) -> None:
    version = registry.register(models[0], "Ada", "")
    stored = next(path for path in (tmp_path / "mlruns").rglob("model.onnx"))
    stored.write_bytes(models[1].path.read_bytes())
    with pytest.raises(TrainingError, match="not the one that was registered"):
        registry.fetch(version, tmp_path / "fetched")


@pytest.mark.parametrize("digest", ["0" * 64, "f" * 64])
def test_a_file_of_another_digest_is_not_taken(
    registry: Registry, models: list[ModelFile], tmp_path: Path, digest: str
) -> None:
    registry.tag(registry.register(models[0], "Ada", ""), sha256=digest)
    with pytest.raises(TrainingError, match=r"not the one that was registered \(sha256\); register it again"):
        registry.fetch(registry.find("1"), tmp_path / "fetched")


def test_an_older_version_may_be_the_candidate_again_and_a_refused_one_is_not_archived(
    registry: Registry, models: list[ModelFile]
) -> None:
    first, second, third = (registry.register(model, "Ada", "") for model in models)
    registry.make_candidate(first, "Ada")
    assert alias(registry, CANDIDATE) == "1.0.0"
    before = registry.history()
    registry.make_candidate(first, "Ada")
    assert registry.history() == before, "it is the candidate already"
    registry.make_candidate(second, "Ada")
    assert registry.history() == before, "the first was archived long ago"
    assert alias(registry, CANDIDATE) == "1.0.1"
    registry.tag(second, stage="refused")
    registry.make_candidate(third, "Ada")
    assert registry.find("1.0.1").tags["stage"] == "refused"
    assert [event.semver for event in registry.history() if event.what == "archived"] == [
        "1.0.0",
        "1.0.1",
        "1.0.2",
    ]


def test_a_version_that_is_only_measured_leaves_the_candidate_as_it_is(
    registry: Registry, models: list[ModelFile]
) -> None:
    registry.register(models[0], "Ada", "")
    registry.register(models[1], "Ada", "", candidate=False)
    assert alias(registry, CANDIDATE) == "1.0.0"
    registry.promote(registry.find("1.0.1"), "Ada", "")
    assert (alias(registry, CANDIDATE), alias(registry, CHAMPION)) == ("1.0.0", "1.0.1")
    with pytest.raises(TrainingError, match=r"tilewise 1\.0\.1 is the champion already"):
        registry.promote(registry.find("1.0.1"), "Ada", "")
    registry.register(models[2], "Ada", "")
    registry.promote(registry.find("1.0.0"), "Ada", "")
    assert (alias(registry, CANDIDATE), alias(registry, CHAMPION)) == ("1.0.2", "1.0.0")
    assert {registry.find(name).tags["stage"] for name in ("1.0.0", "champion")} == {"champion"}
    assert "version 1.0.0 was promoted" in [event.why for event in registry.history()]


def test_a_champion_that_went_back_since_the_measurement_is_noticed(
    registry: Registry, models: list[ModelFile]
) -> None:
    for model in models[:2]:
        registry.promote(registry.register(model, "Ada", ""), "Ada", "")
    measured = registry.by_alias(CHAMPION)
    registry.require_champion(measured)
    registry.rollback("Ada", "")
    with pytest.raises(TrainingError, match=r"changed from 1\.0\.1 to 1\.0\.0 "):
        registry.require_champion(measured)


def test_the_newest_version_is_that_of_the_highest_numbers(
    registry: Registry, models: list[ModelFile]
) -> None:
    for model, semver in zip(models, ("1.9.7", "1.10.2", "1.2.0"), strict=True):
        registry.register(model, "Ada", "", semver=semver)
    same = models[0].metadata
    assert registry.next_semver(same) == "1.10.3"
    for classes in (("A", "B"), ("Z", "A")):
        assert registry.next_semver(same.model_copy(update={"classes": classes})) == "2.0.0"
    for data in ("0", "f"):
        assert registry.next_semver(same.model_copy(update={"data_hash": data})) == "1.11.0"


@pytest.mark.parametrize("semver", ["1.2", "1.2.3.4", "1.2.x", "v1.2.3"])
def test_what_is_no_semantic_version_is_refused(
    registry: Registry, models: list[ModelFile], semver: str
) -> None:
    with pytest.raises(TrainingError, match=f"'{semver}' is no semantic version"):
        registry.register(models[0], "Ada", "", semver=semver)
    assert registry.versions() == []


@pytest.mark.parametrize(
    ("history", "champions"),
    [
        ("", ""),
        ("+1 +2 .3 +3", "123"),
        ("+1 +2 -2 +1", "1"),
        ("+1 +2 +3 -3 +1", "1"),
        ("+1 +2 +1 +2 -2 +1", "121"),
        ("+1 +2 -2 +1 +2", "12"),
        ("+1 +2 -2 +1 +3 +1", "131"),
        ("+1 +2 -2 +5", "15"),
        ("+1 +2 -2 +1 +2 +3 -3 +2", "12"),
    ],
)
def test_rollbacks_take_promotions_back(history: str, champions: str) -> None:
    """`+` promotes a version, `-` rolls one back, and the promotion after that is to which."""
    what = {"+": "promoted", "-": "rolled back", ".": "registered"}
    events = [Event("", what[word[0]], word[1], "", "", "") for word in history.split()]
    assert "".join(_champions(events)) == champions


def test_a_version_without_the_digest_of_its_file_is_not_taken(
    registry: Registry, models: list[ModelFile], tmp_path: Path
) -> None:
    registry.register(models[0], "Ada", "")
    registry.client.delete_model_version_tag(registry.name, "1", "sha256")
    with pytest.raises(TrainingError, match=r"not the one that was registered \(sha256\); register it again"):
        registry.fetch(registry.find("1"), tmp_path / "fetched")


def test_gates_compare_with_the_champion_that_is_fetched_if_there_is_one(
    registry: Registry, models: list[ModelFile], judged: Path, tmp_path: Path
) -> None:
    pack, settings = Pack(judged), GateSettings()
    alone = registry.gate_context(models[1].path, None, tmp_path, pack, settings)
    assert (alone.candidate.sha256, alone.champion) == (models[1].sha256, None)
    champion = registry.register(models[0], "Ada", "")
    compared = registry.gate_context(models[1].path, champion, tmp_path, pack, settings)
    assert compared.champion is not None
    assert compared.champion.sha256 == models[0].sha256
