"""Train one model: the training images in, weights out.

All images stay in memory as one uint8 tensor, and a batch is one index operation on it.
"""

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from dvclive import Live
from safetensors.torch import save
from scmrepo.exceptions import SCMError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR
from tqdm import tqdm

from stages import artifacts, command, dataset, devices, networks, params
from stages.augmentation import random_affine
from stages.dataset import Split
from stages.errors import UserError
from stages.params import Params, Recipe


def main(model: str) -> None:
    """Train MODEL by the recipe in params.yaml and write its weights."""
    parameters = params.load(model)
    recipe = parameters.recipes[parameters.recipe][model]
    device = devices.choose(parameters.device)
    network, training, validation = prepare(model, parameters, recipe, parameters.seed)
    tqdm.write(networks.describe(network))
    start = time.perf_counter()
    with artifacts.replacing(artifacts.training(model)) as folder, open_log(folder) as live:
        for metrics in fit(network, training.to(device), validation.to(device), recipe):
            if not math.isfinite(metrics["loss"] + metrics["val_loss"]):
                key = f"recipes.{parameters.recipe}.{model}.learning_rate"
                raise UserError(f"the loss is no longer finite; try a {key} below {recipe.learning_rate}")
            for name, value in metrics.items():
                live.log_metric(name, value)
            live.next_step()
    print(f"{model}: trained in {time.perf_counter() - start:.1f} s on {device.type}")

    with artifacts.replacing(artifacts.weights(model)) as path:
        path.write_bytes(save({name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}))


def prepare(model: str, parameters: Params, recipe: Recipe, seed: int) -> tuple[nn.Sequential, Split, Split]:
    """Return the untrained network, the images to train it on and those to validate it with, as the seed has them."""
    training, validation = hold_out(dataset.load_training(parameters.data), parameters.data.validation, seed)
    make_deterministic(seed)
    description, classes = parameters.networks[model], len(parameters.data.classes)
    return networks.build(description, classes, recipe.dropout, recipe.initialization), training, validation


def open_log(folder: Path) -> Live:
    """Start a log of losses and accuracies by epoch, counted from 1, for DVC's metrics and plots."""
    try:
        live = Live(str(folder), save_dvc_exp=False, dvcyaml=None, report=None)
    except SCMError as error:
        raise UserError(f"DVCLive needs a git repository with a commit: {error}") from error
    live.step = 1
    return live


def make_deterministic(seed: int) -> None:
    """Make the same seed give the same weights on the same machine, byte for byte."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads any, and filling costs time
    torch.manual_seed(seed)


def hold_out(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Split off a random `fraction` of the images, at least one, for validation."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    size = max(1, round(fraction * len(order)))
    return split[order[size:]], split[order[:size]]


def fit(network: nn.Module, training: Split, validation: Split, recipe: Recipe) -> Iterator[dict[str, float]]:
    """Train in place, where the images are, and after each epoch give its loss, accuracy, val_loss and val_accuracy."""
    network.to(training.labels.device, memory_format=torch.channels_last)
    steps = math.ceil(len(training) / recipe.batch_size)
    optimizer = SGD(
        network.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    schedule = make_schedule(optimizer, recipe, recipe.epochs * steps)
    with tqdm(total=recipe.epochs * steps, unit="step", disable=None) as progress:
        for epoch in range(1, recipe.epochs + 1):
            start = time.perf_counter()
            network.train()
            sums = torch.zeros(2, device=training.labels.device)
            for batch in shuffled_batches(training, steps):
                sums += step(network, optimizer, batch, recipe)
                schedule.step()
                progress.update()
            loss, accuracy = (sums / len(training)).tolist()
            metrics = {"loss": loss, "accuracy": accuracy} | validate(network, validation)
            report(epoch, recipe.epochs, metrics, time.perf_counter() - start)
            yield metrics


def make_schedule(optimizer: SGD, recipe: Recipe, steps: int) -> LRScheduler:
    if recipe.schedule == "constant":
        return ConstantLR(optimizer, factor=1)
    return OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps, cycle_momentum=False)


def shuffled_batches(split: Split, count: int) -> Iterator[Split]:
    """Give every image once, in `count` random batches of nearly equal size: none too small for batch norm."""
    order = torch.randperm(len(split), device=split.labels.device)
    return (split[indices] for indices in order.tensor_split(count))


def step(network: nn.Module, optimizer: SGD, batch: Split, recipe: Recipe) -> Tensor:
    """Descend the gradient once; return the batch's summed loss and number of right answers, float32 [2].

    Nothing here waits for the device: the sums are read once an epoch.
    """
    images = networks.scale(batch.images)
    if recipe.affine:
        images = random_affine(images, recipe.affine)
    logits = network(images)
    loss = cross_entropy(logits, batch.labels, label_smoothing=recipe.label_smoothing)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return torch.stack([loss.detach() * len(batch), (logits.argmax(dim=1) == batch.labels).sum()])


def report(epoch: int, epochs: int, metrics: dict[str, float], seconds: float) -> None:
    values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    tqdm.write(f"epoch {epoch:>{len(str(epochs))}}/{epochs}  {values}  {seconds:.1f} s")


def validate(network: nn.Module, validation: Split) -> dict[str, float]:
    """Return the mean loss and the accuracy on the held-out images."""
    logits = networks.predict(network, validation.images)
    return {
        "val_loss": cross_entropy(logits, validation.labels).item(),
        "val_accuracy": (logits.argmax(dim=1) == validation.labels).float().mean().item(),
    }


if __name__ == "__main__":
    command.run(main, "model")
