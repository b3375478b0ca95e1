"""Temperature scaling: one number, fitted on validation data, that makes probabilities mean what they say.

Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599.
"""

import torch
from torch import Tensor
from torch.nn import functional

_LOWEST, _HIGHEST = 0.05, 20.0


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature (0.05 to 20) that minimises the negative log-likelihood of softmax(logits / T).

    Args:
        logits: float (n, classes).
        labels: int64 (n,).
    """
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = functional.cross_entropy(logits.double() / log_temperature.exp(), labels)
        loss.backward()
        return loss

    optimiser.step(closure)
    return float(log_temperature.detach().exp().clamp(_LOWEST, _HIGHEST))
