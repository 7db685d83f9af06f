"""Train one model: the training images in, weights out.

All images stay in memory as one uint8 tensor, and a batch is one index operation on it.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from dvclive import Live
from scmrepo.exceptions import SCMError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer
from tqdm import tqdm

from stages import artifacts, command, dataset, devices, networks, params, turn
from stages.checkpoint import Checkpoint, fingerprint
from stages.dataset import Split
from stages.distortion import distort
from stages.errors import UserError
from stages.params import Params, Recipe


def main(model: str) -> None:
    """Train MODEL by the recipe in params.yaml and write its weights; go on where a stopped training was."""
    parameters = params.load(model)
    waiting = f"{model} is being trained by an older process: waiting for the end of its epoch"
    with turn.take(artifacts.training_lock(model), waiting) as is_wanted:
        train(model, parameters, is_wanted)


def train(model: str, parameters: Params, is_wanted: Callable[[], bool]) -> None:
    """Train and write the weights and the log of each epoch.

    Raises UserError if the loss is not finite, or after an epoch in which another process wanted the turn.
    """
    recipe = parameters.recipes[parameters.recipe][model]
    device = devices.choose(parameters.device)
    set_up(parameters.threads)
    network, training, validation = prepare(model, parameters, recipe, parameters.seed)
    tqdm.write(networks.describe(network))
    checkpoint = Checkpoint(artifacts.checkpoint(model), fingerprint(model, parameters, device))
    start = time.perf_counter()
    with artifacts.replacing(artifacts.training(model)) as folder, open_log(folder) as live:
        for metrics in fit(network, training.to(device), validation.to(device), recipe, parameters.seed, checkpoint):
            for name, value in metrics.items():
                live.log_metric(name, value)
            live.next_step()
            if is_wanted():
                raise UserError(f"stopped after epoch {live.step - 1}, for a newer process goes on from there")
    print(f"{model}: trained in {time.perf_counter() - start:.1f} s on {device.type}")

    with artifacts.replacing(artifacts.weights(model)) as path:
        path.write_bytes(networks.to_safetensors(network.state_dict()))
    checkpoint.remove()


def set_up(threads: int) -> None:
    """Set this process up to train with so many threads on the CPU, fast and, for the same seed, to the same bytes."""
    devices.use_threads(threads)
    devices.keep_freed_memory()
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads any, and filling costs time


def prepare(model: str, parameters: Params, recipe: Recipe, seed: int) -> tuple[nn.Sequential, Split, Split]:
    """Return the network with the seed's first weights, and the seed's images to train and to validate it with."""
    training, validation = hold_out(dataset.load_training(parameters.data), parameters.data.validation, seed)
    torch.manual_seed(seed)
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


def hold_out(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Split off a random `fraction` of the images, at least one, for validation."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    size = max(1, round(fraction * len(order)))
    return split[order[size:]], split[order[:size]]


def fit(
    network: nn.Module, training: Split, validation: Split, recipe: Recipe, seed: int, checkpoint: Checkpoint
) -> Iterator[dict[str, float]]:
    """Train in place, where the images are, and after each epoch give its loss, accuracy, val_loss and val_accuracy.

    What an epoch draws depends on the seed and its number alone, so that any epoch can be the first after a stop.
    Raises UserError at the end of an epoch whose loss is not finite.
    """
    network.to(training.labels.device, memory_format=torch.channels_last)
    optimizer = SGD(
        network.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    steps = math.ceil(len(training) / recipe.batch_size)
    history = checkpoint.restore(network, optimizer)
    yield from history
    with tqdm(total=recipe.epochs * steps, initial=len(history) * steps, unit="step", disable=None) as progress:
        for epoch in range(len(history), recipe.epochs):
            start = time.perf_counter()
            torch.manual_seed(epoch_seed(seed, epoch))
            network.train()
            sums = torch.zeros(2, device=training.labels.device)
            for number, batch in enumerate(shuffled_batches(training, steps), start=epoch * steps):
                done = (number + 0.5) / (recipe.epochs * steps)
                optimizer.param_groups[0]["lr"] = learning_rate(recipe, done)
                if recipe.distortion and done < recipe.distort_until:
                    images = distort(batch.images, recipe.distortion)
                else:
                    images = networks.scale(batch.images)
                sums += step(network, optimizer, images, batch.labels, recipe.label_smoothing)
                progress.update()
            loss, accuracy = (sums / len(training)).tolist()
            metrics = {"loss": loss, "accuracy": accuracy} | validate(network, validation)
            if not math.isfinite(metrics["loss"] + metrics["val_loss"]):
                raise UserError(f"the loss is no longer finite; try a learning_rate below {recipe.learning_rate}")
            report(epoch + 1, recipe.epochs, metrics, time.perf_counter() - start)
            history.append(metrics)
            checkpoint.save(network, optimizer, history)
            yield metrics


def epoch_seed(seed: int, epoch: int) -> int:
    """Return 32 bits that look unrelated for each seed and each epoch."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


def learning_rate(recipe: Recipe, done: float) -> float:
    """Return the rate when this share of the training is done, 0 to 1.

    With a warm-up it is one cycle (Smith & Topin 2017, arXiv:1708.07120): from 0 up to the recipe's rate and down to
    0 again, here along halves of a cosine, as PyTorch's OneCycleLR has them.
    """
    if recipe.warm_up is None:
        return recipe.learning_rate
    ramp = done / recipe.warm_up if done < recipe.warm_up else (1 - done) / (1 - recipe.warm_up)
    return recipe.learning_rate * (1 - math.cos(math.pi * ramp)) / 2


def shuffled_batches(split: Split, count: int) -> Iterator[Split]:
    """Give every image once, in `count` random batches of nearly equal size: none too small for batch norm."""
    order = torch.randperm(len(split)).to(split.labels.device)  # drawn on the CPU: the same order on every device
    return (split[indices] for indices in order.tensor_split(count))


def step(network: nn.Module, optimizer: Optimizer, images: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Descend the gradient once; return the batch's summed loss and number of right answers, float32 [2].

    Nothing here waits for the device: the sums are read once an epoch.
    """
    logits = network(images)
    loss = cross_entropy(logits, labels, label_smoothing=label_smoothing)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return torch.stack([loss.detach() * len(labels), (logits.argmax(dim=1) == labels).sum()])


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
