"""What a training that was stopped goes on from: its state after the last finished epoch, in one file."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from stages import artifacts, networks
from stages.params import Params

History = list[dict[str, float]]  # the metrics of each finished epoch


@dataclass(frozen=True)
class Checkpoint:
    """A file of three parts, each ended by a newline but the last.

    The SHA-256 of the rest; a JSON object with the training's fingerprint and history; the tensors as safetensors.
    """

    path: Path
    fingerprint: str

    def save(self, network: nn.Module, optimizer: Optimizer, history: History) -> None:
        """Write the state after the epochs of `history`, in place of that of an earlier epoch."""
        header = json.dumps({"fingerprint": self.fingerprint, "history": history})
        content = header.encode() + b"\n" + networks.to_safetensors(_tensors(network, optimizer))
        with artifacts.replacing(self.path) as temporary:
            temporary.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)

    def restore(self, network: nn.Module, optimizer: Optimizer) -> History:
        """Bring network and optimizer, in place, to where the checkpoint was saved, and return the epochs until then.

        Without a checkpoint, or with one that is damaged or another training's, which a line tells, both stay as they
        are.
        """
        if not self.path.is_file():
            return []
        digest, _, content = self.path.read_bytes().partition(b"\n")
        if hashlib.sha256(content).hexdigest().encode() != digest:
            tqdm.write(f"{self.path} is damaged: starting anew")
            return []
        header, _, tensors = content.partition(b"\n")
        state = json.loads(header)
        if state["fingerprint"] != self.fingerprint:
            tqdm.write(f"{self.path} is of other parameters, data, code or another machine: starting anew")
            return []
        _restore(network, optimizer, load(tensors))
        tqdm.write(f"{self.path} is of this training: going on after epoch {len(state['history'])}")
        return state["history"]

    def remove(self) -> None:
        artifacts.remove(self.path)


def fingerprint(model: str, parameters: Params, device: torch.device) -> str:
    """Return the SHA-256, in hex, of all that decides which bytes a training ends with: any change of code counts.

    Call it when the number of threads is set.
    """
    decisive = {
        "network": parameters.networks[model].model_dump(),
        "recipe": parameters.recipes[parameters.recipe][model].model_dump(),
        "seed": parameters.seed,
        "data": parameters.data.model_dump(include={"sha256", "classes", "validation"}),
        "code": {file.name: artifacts.sha256(file) for file in sorted(Path(__file__).parent.glob("*.py"))},
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _tensors(network: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    buffers = {
        f"optimizer.{number}.{name}": buffer
        for number, buffers in optimizer.state_dict()["state"].items()
        for name, buffer in buffers.items()
    }
    return {f"network.{name}": tensor for name, tensor in network.state_dict().items()} | buffers


def _restore(network: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    network.load_state_dict({name: tensors[f"network.{name}"] for name in network.state_dict()})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, tensor in tensors.items():
        kind, number, name = key.split(".", 2)
        if kind == "optimizer":
            parameter = parameters[int(number)]
            # in the parameter's own memory format, which the fused optimizer takes for granted
            optimizer.state[parameter][name] = torch.empty_like(parameter).copy_(tensor)
