"""The head of fine-tuned files: which of its three scores decides."""

import pytest
import torch

from tilewise.models.network.finetuned import FineTunedHead, nearest_distance
from tilewise.models.network.outliers import InputCheck


@pytest.fixture
def head() -> FineTunedHead:
    torch.manual_seed(0)
    bank = torch.nn.functional.normalize(torch.randn(40, 6) * 0.1 + torch.eye(6)[0])
    return FineTunedHead(torch.randn(3, 6), torch.zeros(3), 1.0, bank, InputCheck()).eval()


def test_the_distance_is_that_to_the_five_nearest() -> None:
    similarity = torch.tensor([[0.9, 0.1, 0.8, 0.7, 0.6, 0.5, 0.0]])
    assert nearest_distance(similarity).item() == pytest.approx(1 - 0.7)
    assert nearest_distance(similarity[:, :2]).item() == pytest.approx(1 - 0.5), "of fewer, all"


def test_limits_let_the_stated_fraction_of_known_tiles_pass(head: FineTunedHead) -> None:
    distance, faults = torch.linspace(0, 1, 101), torch.zeros(101, 2)
    head.fit_limits(distance, faults, false_alarms=0.05)
    assert (head.combine(distance, faults) > 1).float().mean().item() == pytest.approx(0.05, abs=0.01)


def test_a_check_below_its_limit_does_not_rank_tiles_and_above_it_flags(head: FineTunedHead) -> None:
    head.fit_limits(torch.linspace(0, 1, 101), torch.zeros(101, 2), false_alarms=0.05)
    distance = torch.tensor([0.1, 0.1, 0.1])
    quiet, almost, faulty = head.combine(distance, torch.tensor([[-3.0, 0.0], [0.99, 0.0], [2.0, 0.0]]))
    assert quiet == almost < 0.2
    assert faulty == 2
    assert head.combine(distance[:1], torch.tensor([[0.0, 0.5]])).item() == pytest.approx(25), "half missing"


def test_own_tiles_that_the_check_calls_faulty_raise_its_limit(head: FineTunedHead) -> None:
    faults = torch.tensor([[4.0, 0.3]]).repeat(100, 1)
    head.fit_limits(torch.linspace(0, 1, 100), faults, false_alarms=0.05)
    assert (head.combine(torch.zeros(100), faults) > 1).sum() == 0


def test_a_tile_unlike_all_of_the_bank_scores_higher(head: FineTunedHead) -> None:
    tiles = torch.full((2, 13, 64, 64), 1000, dtype=torch.uint16)
    embedding = torch.stack([head.bank[0], -head.bank[0]])
    probabilities, logits, score = head(tiles, embedding)
    assert score[1] > score[0] + 1
    assert torch.allclose(probabilities.sum(1), torch.ones(2))
    assert logits.shape == (2, 3)
