"""Calibration of a network's probabilities by temperature scaling."""

import math

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

MAX_TEMPERATURE = 20.0  # its inverse is the minimum; if every prediction is correct, the optimum would be 0


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature with the lowest mean cross-entropy of logits / temperature (Guo et al. 2017, section 4.2).

    Takes logits, float32 [n, classes], and labels, int64 [n], of images that the network was not trained on.
    """
    logits, labels = logits.double().cpu(), labels.cpu()

    def loss(log_temperature: float) -> float:
        return cross_entropy(logits / math.exp(log_temperature), labels).item()

    bound = math.log(MAX_TEMPERATURE)
    return math.exp(minimize_scalar(loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-6}).x)


@torch.no_grad()
def divide_logits(network: nn.Sequential, temperature: float) -> None:
    """Divide, in place, the weights and biases of the last layer, and so the logits. The labels stay the same."""
    output = network[-1]
    assert isinstance(output, nn.Linear)
    output.weight.div_(temperature)
    output.bias.div_(temperature)
