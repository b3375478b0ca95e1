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


def test_answers_that_are_all_right_do_not_make_it_vanish() -> None:
    logits = torch.eye(4).repeat(10, 1) * 5
    assert fit_temperature(logits, logits.argmax(1)) >= 0.05
