"""Networks from their descriptions in params.yaml."""

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Literal

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from stages import artifacts
from stages.dataset import IMAGE_SHAPE
from stages.errors import UserError, one_line
from stages.params import Network


def build(
    network: Network, classes: int, dropout: float = 0.0, initialization: Literal["pytorch", "glorot"] = "pytorch"
) -> nn.Sequential:
    """Build the network that turns float32 images [n, 1, 28, 28] into logits [n, classes].

    Blocks of convolutions, each ended by a 2 x 2 max-pool, then dense layers; dropout follows the first of them.
    """
    built = nn.Sequential(OrderedDict(_layers(network, classes, dropout)))
    if initialization == "glorot":
        _initialize_glorot(built)
    return built


def _layers(network: Network, classes: int, dropout: float) -> dict[str, nn.Module]:
    """Name and make the layers, in their order."""
    layers: dict[str, nn.Module] = {}
    channels, height, width = IMAGE_SHAPE
    for number, (outputs, ends_block) in enumerate(_convolutions(network), start=1):
        name = f"conv{number}"
        if network.kernel_size % 2 == 0:  # one more at the bottom and the right, as Keras pads
            layers[f"{name}_pad"] = nn.ZeroPad2d((0, 1, 0, 1))
        layers[name] = nn.Conv2d(channels, outputs, network.kernel_size, padding=(network.kernel_size - 1) // 2)
        if network.batch_norm:
            layers[f"{name}_norm"] = nn.BatchNorm2d(outputs)
        if ends_block:  # before ReLU, which commutes with it and then has a quarter of the work
            layers[f"{name}_pool"] = nn.MaxPool2d(2)
            height, width = height // 2, width // 2
        layers[f"{name}_relu"] = nn.ReLU()
        channels = outputs

    layers["flatten"] = nn.Flatten()
    features = channels * height * width
    for number, outputs in enumerate(network.hidden, start=1):
        name = f"dense{number}"
        layers[name] = nn.Linear(features, outputs)
        if network.batch_norm:
            layers[f"{name}_norm"] = nn.BatchNorm1d(outputs)
        layers[f"{name}_relu"] = nn.ReLU()
        if number == 1 and dropout:
            layers["dropout"] = nn.Dropout(dropout)
        features = outputs
    layers["output"] = nn.Linear(features, classes)
    return layers


def _convolutions(network: Network) -> list[tuple[int, bool]]:
    """The output channels of each convolution, and whether it ends its block."""
    return [
        (outputs, position == len(block))
        for block in network.convolutions
        for position, outputs in enumerate(block, start=1)
    ]


def _initialize_glorot(network: nn.Sequential) -> None:
    """Draw weights as Keras does, from U(-a, a), a² = 6 / (inputs + outputs) (Glorot & Bengio 2010, equation 16)."""
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


def scale(images: Tensor) -> Tensor:
    """Turn raw pixels, uint8 0 to 255, into a network's input, float32 0 to 1."""
    return images.float() / 255


class Classifier(nn.Module):
    """What is exported and served: raw pixels in, answers out."""

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Turn uint8 images [n, 1, 28, 28] into labels, int64 [n], and probabilities, float32 [n, classes]."""
        probabilities = self.network(scale(image)).softmax(dim=1)
        return probabilities.argmax(dim=1), probabilities


def load(path: Path, network: Network, classes: int) -> nn.Sequential:
    """Load a trained network for inference. Raises UserError if the file is missing, corrupt or of another network."""
    trained = build(network, classes)
    try:
        trained.load_state_dict(load_file(artifacts.require(path)))
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise UserError(f"{path} does not hold this network's weights: {one_line(error)}") from error
    return trained.eval()


def to_safetensors(tensors: dict[str, Tensor]) -> bytes:
    """Return the content of a safetensors file with these tensors, wherever they are and however they are laid out."""
    return save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})


@torch.inference_mode()
def predict(network: nn.Sequential, images: Tensor) -> Tensor:
    """Return the logits, float32 [n, classes], of uint8 images [n, 1, 28, 28]."""
    network.eval()
    return torch.cat([network(scale(batch)) for batch in images.split(1000)])


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.inference_mode()
def describe(network: nn.Sequential) -> str:
    """List the layers with their output shapes and parameter counts."""
    rows = [f"{'layer':<14}{'output shape':<18}{'parameters':>12}"]
    values = torch.zeros(1, *IMAGE_SHAPE)
    for name, layer in copy.deepcopy(network).eval().named_children():
        values = layer(values)
        shape = f"[{', '.join(['n', *map(str, values.shape[1:])])}]"
        rows.append(f"{name:<14}{shape:<18}{parameter_count(layer):>12,}")
    rows.append(f"{'total':<32}{parameter_count(network):>12,}")
    return "\n".join(rows)
