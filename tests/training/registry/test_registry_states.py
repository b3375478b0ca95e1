"""Promotions and rollbacks by two people at once, in any order, against a list of champions."""

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from mlflow.entities.model_registry import ModelVersion

from tilewise.datasets.core.errors import TrainingError
from tilewise.models.model_file import open_model
from tilewise.training.registry.registry import CHAMPION, PREVIOUS, Registry

VERSIONS = 3  # so that versions are promoted again and again, and a champion has two others before it
PEOPLE = st.sampled_from(["Ada", "Grace"])
OTHER = st.integers(1, VERSIONS - 1)


@pytest.mark.slow
def test_the_champion_is_always_the_one_that_the_history_says(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_model: Callable[..., Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    uri, names = f"sqlite:///{store}", count()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    registered = Registry(uri).register(open_model(make_model()), "Ada", "")

    class Promoters(RuleBasedStateMachine):
        """Against a list of champions: a promotion adds to it, a rollback takes away.

        Each person has a client of the same store.
        """

        def __init__(self) -> None:
            super().__init__()
            name = f"model-{next(names)}"
            self.registries = {who: Registry(uri, name) for who in ("Ada", "Grace")}
            self.versions = [self.create(f"1.0.{patch}") for patch in range(VERSIONS)]
            self.champions: list[int] = []
            self.previous: int | None = None

        def create(self, semver: str) -> ModelVersion:
            """Create a version of the same file: registering one for each example would take seconds."""
            registry = self.registries["Ada"]
            if not registry.versions():
                registry.client.create_registered_model(registry.name)
            source = str(registered.source)
            return registry.client.create_model_version(registry.name, source, tags={"semver": semver})

        @property
        def champion(self) -> int | None:
            return self.champions[-1] if self.champions else None

        def other(self, number: int) -> int:
            """Return a version that is not the champion."""
            return ((self.champion or 0) + number) % VERSIONS

        def promoted(self, chosen: int) -> None:
            self.previous = self.champion
            self.champions.append(chosen)

        @initialize(promotions=st.lists(st.tuples(PEOPLE, OTHER), max_size=3))
        def begin(self, promotions: list[tuple[str, int]]) -> None:
            """Promote a few at first: rollbacks else keep the line short."""
            for who, number in promotions:
                self.promote(who, number)

        @rule(who=PEOPLE, number=OTHER)
        def promote(self, who: str, number: int) -> None:
            chosen = self.other(number)
            self.registries[who].promote(self.versions[chosen], who, "")
            self.promoted(chosen)

        @precondition(lambda self: self.champion is not None)
        @rule(who=PEOPLE)
        def promote_the_champion(self, who: str) -> None:
            with pytest.raises(TrainingError, match="is the champion already"):
                self.registries[who].promote(self.versions[self.champions[-1]], who, "")

        @rule(who=PEOPLE, number=OTHER, meanwhile=st.lists(st.booleans(), min_size=1, max_size=2))
        def measure_and_promote(self, who: str, number: int, meanwhile: list[bool]) -> None:
            """Measure, while the other person promotes (True) or rolls back."""
            measured, against = self.registries[who].by_alias(CHAMPION), self.champion
            for replaces in meanwhile:
                another = "Grace" if who == "Ada" else "Ada"
                self.promote(another, number) if replaces else self.roll_back(another)
            chosen = self.other(number)
            if against == self.champion:
                self.registries[who].promote_over(measured, self.versions[chosen], who, "")
                self.promoted(chosen)
                return
            with pytest.raises(TrainingError, match="changed from"):
                self.registries[who].promote_over(measured, self.versions[chosen], who, "")

        @rule(who=PEOPLE)
        def roll_back(self, who: str) -> None:
            registry = self.registries[who]
            if len(self.champions) < 2:
                with pytest.raises(TrainingError, match="no champion"):
                    registry.rollback(who, "")
                return
            _, target = registry.rollback(who, "")
            self.previous = self.champions.pop()
            assert target.version == self.versions[self.champions[-1]].version

        @precondition(lambda self: len(self.champions) > 1)
        @rule(who=PEOPLE, number=OTHER)
        def roll_back_and_promote_again(self, who: str, number: int) -> None:
            """Promote what was rolled back, and another over it: a version may come back to stay."""
            gone = self.champions[-1]
            self.roll_back(who)
            self.registries[who].promote(self.versions[gone], who, "")
            self.promoted(gone)
            self.promote(who, number)

        @invariant()
        def services_follow(self) -> None:
            registry = self.registries["Grace"]
            named = registry.client.get_registered_model(registry.name).aliases
            wanted = {CHAMPION: self.champion, PREVIOUS: self.previous}
            assert {alias: str(version) for alias, version in named.items()} == {
                alias: str(self.versions[number].version)
                for alias, number in wanted.items()
                if number is not None
            }

        def teardown(self) -> None:
            """Roll back to the first champion, in turns: each promotion that stands is taken back once."""
            for who in ("Ada", "Grace") * len(self.champions):
                if len(self.champions) < 2:
                    break
                self.roll_back(who)

    run_state_machine_as_test(
        Promoters,
        settings=settings(
            max_examples=8,
            stateful_step_count=8,
            deadline=None,
            derandomize=True,
            phases=(Phase.generate,),  # not to the shortest failure: each step writes to a database
        ),
    )
