"""Checkpoints: the state of a training after its last finished epoch, in one file."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from stages import artifacts, devices, import_graph, networks
from stages.params import Params

History = list[dict[str, float]]  # the metrics of each finished epoch


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file of three parts, the first two ended by a newline.

    The SHA-256 of the rest; a JSON object with the fingerprint and the history; the tensors in safetensors format.
    Unlike a file of torch.save, it holds no pickle, which could run code.
    """

    path: Path
    fingerprint: str

    def save(self, network: nn.Module, optimizer: Optimizer, history: History) -> None:
        """Write the state after the epochs of `history`, replacing that of an earlier epoch."""
        header = json.dumps({"fingerprint": self.fingerprint, "history": history})
        content = header.encode() + b"\n" + networks.serialize_tensors(_tensors(network, optimizer))
        with artifacts.atomic_write(self.path) as temporary:
            temporary.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)

    def restore(self, network: nn.Module, optimizer: Optimizer) -> History:
        """Restore network and optimizer in place, and return the history of the finished epochs.

        A missing checkpoint leaves network and optimizer unchanged. So does one that is corrupt or from a different
        run, with a message.
        """
        if not self.path.is_file():
            return []
        digest, _, content = self.path.read_bytes().partition(b"\n")
        if hashlib.sha256(content).hexdigest().encode() != digest:
            tqdm.write(f"{self.path}: corrupt checkpoint, training from the start")
            return []
        header, _, tensors = content.partition(b"\n")
        state = json.loads(header)
        if state["fingerprint"] != self.fingerprint:
            tqdm.write(f"{self.path}: checkpoint of other parameters, data, code or hardware, training from the start")
            return []
        _restore_tensors(network, optimizer, load(tensors))
        history: History = state["history"]
        tqdm.write(f"{self.path}: resuming after epoch {len(history)}")
        return history


def compute_fingerprint(model: str, parameters: Params, device: torch.device) -> str:
    """Return the SHA-256, in hexadecimal, of everything that decides the bytes of a training's weights.

    Call it after the number of threads is set. The code is that of stages/train.py and of the modules that it imports.
    """
    recipe = parameters.recipes[parameters.recipe][model]
    code = import_graph.imported_modules(Path(__file__).with_name("train.py"))
    inputs = {
        "network": parameters.networks[model].model_dump(),
        "outlier_sources": parameters.outlier_sources.model_dump(),
        "recipe": recipe.model_dump(),
        "seed": parameters.seed,
        "data": parameters.data.model_dump(include={"sha256", "classes", "validation_fraction"}),
        "code": {file.as_posix(): artifacts.sha256_digest(import_graph.ROOT / file) for file in code},
        "torch": torch.__version__,
        "environment": devices.environment(device, devices.select_dtype(recipe.precision, device)),
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _tensors(network: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    buffers = {
        f"optimizer.{number}.{name}": buffer
        for number, state in optimizer.state_dict()["state"].items()
        for name, buffer in state.items()
    }
    return {f"network.{name}": tensor for name, tensor in network.state_dict().items()} | buffers


def _restore_tensors(network: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    network.load_state_dict({name: tensors[f"network.{name}"] for name in network.state_dict()})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, tensor in tensors.items():
        kind, number, name = key.split(".", 2)
        if kind == "optimizer":
            parameter = parameters[int(number)]
            # the fused optimizer requires the parameter's own memory format
            optimizer.state[parameter][name] = torch.empty_like(parameter).copy_(tensor)
