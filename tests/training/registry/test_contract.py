"""The contract test of a model: a service that is started with it answers as clients expect."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tilewise.datasets.packs.pack import Pack
from tilewise.training.evaluate.outputs import open_single_threaded
from tilewise.training.registry import contract


@pytest.mark.slow
def test_a_real_service_keeps_its_contract(judged: Path, make_model: Callable[..., Path]) -> None:
    pack = Pack(judged)
    assert contract.violations(open_single_threaded(make_model()), pack.fetch(pack.rows("test")[:5])) == []
