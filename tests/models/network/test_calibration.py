import pytest
import torch

from tilewise.models.network.calibration import fit_temperature


def answers(scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose softmax is the true chance of each label, times `scale`."""
    torch.manual_seed(0)
    logits = torch.randn(20_000, 5) * 2
    labels = torch.distributions.Categorical(logits=logits).sample()
    return logits * scale, labels


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_over_and_under_confidence(scale: float) -> None:
    assert fit_temperature(*answers(scale)) == pytest.approx(scale, rel=0.05)


@pytest.mark.parametrize(("shift", "bound"), [(0, 0.05), (1, 20)])
def test_answers_that_are_all_right_or_all_wrong_leave_it_within_its_bounds(shift: int, bound: float) -> None:
    logits = torch.eye(4).repeat(10, 1) * (5 if shift else 0.01)
    assert fit_temperature(logits, (logits.argmax(1) + shift) % 4) == bound


@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_only_the_proportions_of_weights_count(scale: float) -> None:
    logits, labels = answers(2.0)
    weights = torch.rand(len(labels), dtype=torch.float64)
    expected = fit_temperature(logits, labels, weights)
    assert fit_temperature(logits, labels, weights * scale) == pytest.approx(expected, rel=1e-4)
