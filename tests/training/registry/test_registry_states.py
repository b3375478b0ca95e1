"""Promotions and rollbacks in any order, and a promoter who measured against a champion that is gone."""

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
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
OTHERS = st.lists(st.integers(1, VERSIONS - 1), min_size=1, max_size=3)


@pytest.mark.slow
def test_the_champion_is_always_the_one_that_the_history_says(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_model: Callable[..., Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    model, names = open_model(make_model()), count()

    class Promoters(RuleBasedStateMachine):
        """Against a list of champions: a promotion adds to it, a rollback takes away."""

        def __init__(self) -> None:
            super().__init__()
            self.registry = Registry(f"sqlite:///{store}", f"model-{next(names)}")
            self.versions = [
                self.registry.register(model, "Ada", "", candidate=False) for _ in range(VERSIONS)
            ]
            self.champions: list[int] = []
            self.measured: ModelVersion | None = None
            self.measured_against: int | None = None

        @property
        def champion(self) -> int | None:
            return self.champions[-1] if self.champions else None

        @rule(others=OTHERS)
        def promote(self, others: list[int]) -> None:
            """Promote others than the champion, one after another: rollbacks else keep the line short."""
            for other in others:
                chosen = ((self.champion or 0) + other) % VERSIONS
                self.registry.promote(self.versions[chosen], "Ada", "")
                self.champions.append(chosen)

        @precondition(lambda self: self.champion is not None)
        @rule()
        def promote_the_champion(self) -> None:
            with pytest.raises(TrainingError, match="is the champion already"):
                self.registry.promote(self.versions[self.champion], "Ada", "")

        @rule()
        def roll_back(self) -> None:
            if len(self.champions) < 2:
                with pytest.raises(TrainingError, match="no champion"):
                    self.registry.rollback("Ada", "")
                return
            _, target = self.registry.rollback("Ada", "")
            gone = self.champions.pop()
            assert target.version == self.versions[self.champions[-1]].version
            assert self.registry.by_alias(PREVIOUS).version == self.versions[gone].version  # type: ignore[union-attr]

        @rule()
        def measure(self) -> None:
            self.measured, self.measured_against = self.registry.by_alias(CHAMPION), self.champion

        @precondition(lambda self: self.measured_against is not None)
        @rule()
        def promote_what_was_measured(self) -> None:
            if self.measured_against == self.champion:
                self.registry.require_champion(self.measured)
            else:
                with pytest.raises(TrainingError, match="changed from"):
                    self.registry.require_champion(self.measured)

        @invariant()
        def services_follow(self) -> None:
            named = self.registry.by_alias(CHAMPION)
            wanted = None if self.champion is None else self.versions[self.champion].version
            assert (named and named.version) == wanted

    run_state_machine_as_test(
        Promoters,
        settings=settings(
            max_examples=6,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            phases=(Phase.generate,),  # not to the shortest failure: each step writes to a database
        ),
    )
