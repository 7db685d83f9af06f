"""Calibration of a network's probabilities by temperature scaling, and the entropy above which it gives no label."""

import math

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import entropy
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stages import networks
from stages.dataset import Split

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


def calibrate(network: nn.Sequential, validation: Split, labelled_fraction: float) -> dict[str, float]:
    """Fit the temperature on the validation split, and fold it, in place, into the network's last layer.

    Return the `temperature`, and the `max_entropy`, in nats: a `labelled_fraction` of the images have at most this.
    """
    logits = networks.predict_logits(network, validation.images)
    temperature = fit_temperature(logits, validation.labels)
    divide_logits(network, temperature)
    probabilities = networks.predict_logits(network, validation.images).softmax(dim=1).double().cpu()
    max_entropy = np.quantile(entropy(probabilities, axis=1), labelled_fraction)
    return {"temperature": temperature, "max_entropy": float(max_entropy)}


@torch.no_grad()
def divide_logits(network: nn.Sequential, temperature: float) -> None:
    """Divide, in place, the weights and biases of the last layer, and so the logits. The labels stay the same."""
    output = network[-1]
    assert isinstance(output, nn.Linear)
    output.weight.div_(temperature)
    output.bias.div_(temperature)
