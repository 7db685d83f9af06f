"""Networks built from the layers in params.yaml."""

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Literal

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from stages import artifacts
from stages.errors import UserError, one_line
from stages.images import IMAGE_SHAPE, scale_pixels
from stages.params import Architecture


def build_network(
    architecture: Architecture,
    class_count: int,
    dropout: float = 0.0,
    initialization: Literal["pytorch", "glorot"] = "pytorch",
) -> nn.Sequential:
    """Build a network from float32 images [n, 1, 28, 28] to logits, float32 [n, class_count].

    Blocks of convolutions, each ended by a 2 x 2 max-pool, are followed by dense layers; dropout follows the first one.
    """
    built = nn.Sequential(OrderedDict(_layers(architecture, class_count, dropout)))
    if initialization == "glorot":
        _initialize_glorot(built)
    return built


def _layers(architecture: Architecture, class_count: int, dropout: float) -> dict[str, nn.Module]:
    """Return the layers in order, by name."""
    layers: dict[str, nn.Module] = {}
    channels, height, width = IMAGE_SHAPE
    kernel_size = architecture.kernel_size
    for number, (outputs, ends_block) in enumerate(_convolutions(architecture), start=1):
        name = f"conv{number}"
        if kernel_size % 2 == 0:  # Keras pads one pixel more at the bottom and the right
            layers[f"{name}_pad"] = nn.ZeroPad2d((0, 1, 0, 1))
        layers[name] = nn.Conv2d(channels, outputs, kernel_size, padding=(kernel_size - 1) // 2)
        if architecture.batch_norm:
            layers[f"{name}_norm"] = nn.BatchNorm2d(outputs)
        if ends_block:  # pooling and ReLU commute, and ReLU has a quarter of the work after pooling
            layers[f"{name}_pool"] = nn.MaxPool2d(2)
            height, width = height // 2, width // 2
        layers[f"{name}_relu"] = nn.ReLU()
        channels = outputs

    layers["flatten"] = nn.Flatten()
    features = channels * height * width
    for number, outputs in enumerate(architecture.hidden, start=1):
        name = f"dense{number}"
        layers[name] = nn.Linear(features, outputs)
        if architecture.batch_norm:
            layers[f"{name}_norm"] = nn.BatchNorm1d(outputs)
        layers[f"{name}_relu"] = nn.ReLU()
        if number == 1 and dropout:
            layers["dropout"] = nn.Dropout(dropout)
        features = outputs
    layers["output"] = nn.Linear(features, class_count)
    return layers


def _convolutions(architecture: Architecture) -> list[tuple[int, bool]]:
    """Return the output channels of each convolution, and whether it ends its block."""
    return [
        (outputs, position == len(block))
        for block in architecture.convolutions
        for position, outputs in enumerate(block, start=1)
    ]


def _initialize_glorot(network: nn.Sequential) -> None:
    """Draw Keras's initial weights: U(-a, a) with a² = 6 / (inputs + outputs) (Glorot & Bengio 2010, equation 16)."""
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None  # all layers here have one
            nn.init.zeros_(layer.bias)


class Classifier(nn.Module):
    """The exported model: from raw pixels to label and probabilities."""

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return labels, int64 [n], and probabilities, float32 [n, classes], of uint8 images [n, 1, 28, 28]."""
        probabilities = self.network(scale_pixels(image)).softmax(dim=1)
        return probabilities.argmax(dim=1), probabilities


def load_network(path: Path, architecture: Architecture, class_count: int) -> nn.Sequential:
    """Load trained weights for inference. Raises UserError if the file is missing, corrupt or of another network."""
    trained = build_network(architecture, class_count)
    try:
        trained.load_state_dict(load_file(artifacts.require_file(path)))
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise UserError(f"{path}: expected the network's weights, got {one_line(error)}") from error
    return trained.eval()


def serialize_tensors(tensors: dict[str, Tensor]) -> bytes:
    """Return tensors on any device and in any memory format as the content of a safetensors file."""
    return save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})


@torch.inference_mode()
def predict_logits(network: nn.Module, images: Tensor) -> Tensor:
    """Return the logits, float32 [n, classes], of uint8 images [n, 1, 28, 28]."""
    network.eval()
    return torch.cat([network(scale_pixels(batch)) for batch in images.split(1000)])


def parameter_count(module: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


@torch.inference_mode()
def summarize_layers(network: nn.Sequential) -> str:
    """Return a table of the layers with their output shapes and parameter counts."""
    rows = [f"{'layer':<14}{'output shape':<18}{'parameters':>12}"]
    values = torch.zeros(1, *IMAGE_SHAPE)
    for name, layer in copy.deepcopy(network).eval().named_children():
        values = layer(values)
        shape = f"[{', '.join(['n', *map(str, values.shape[1:])])}]"
        rows.append(f"{name:<14}{shape:<18}{parameter_count(layer):>12,}")
    rows.append(f"{'total':<32}{parameter_count(network):>12,}")
    return "\n".join(rows)
