"""Train one model and write its weights.

Each split's images are kept in memory as one uint8 tensor, and a batch is one index operation on it.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from dvclive.live import Live
from scmrepo.exceptions import SCMError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer
from torch.utils import deterministic
from tqdm import tqdm

from stages import artifacts, command, dataset, devices, networks, params, preemptible_lock
from stages.augmentation import augment
from stages.calibration import calibrate
from stages.checkpoint import Checkpoint, compute_fingerprint
from stages.dataset import Split
from stages.errors import UserError, one_line
from stages.images import scale_pixels
from stages.outliers import make_outliers
from stages.params import Params, Recipe

OUTLIERS_PER_IMAGE = 0.1  # different ones; augmentation varies them


@dataclass(frozen=True)
class TrainingData:
    """What a training needs."""

    training: Split
    validation: Split
    outliers: Tensor  # uint8 [m, 1, 28, 28]; none if the recipe has none

    def to(self, device: torch.device) -> Self:
        """Return the data on a device."""
        return type(self)(self.training.to(device), self.validation.to(device), self.outliers.to(device))


def main(model: str) -> None:
    """Train MODEL with the recipe in params.yaml and write its weights; resume from a checkpoint if there is one."""
    parameters = params.load_params(model)
    waiting_message = f"{model}: another process is training this model; waiting until it finishes its current epoch"
    with preemptible_lock.hold(artifacts.training_lock(model), waiting_message) as is_preempted:
        train(model, parameters, is_preempted)


def train(model: str, parameters: Params, is_preempted: Callable[[], bool]) -> None:
    """Train, calibrate the probabilities on the validation split, and write each epoch's metrics and the final weights.

    The checkpoint stays until stages/evaluate.py removes it, because DVC may yet fail to save the weights.
    Raises UserError if the loss is not finite, or after an epoch in which a newer process preempted this one.
    """
    recipe = parameters.recipes[parameters.recipe][model]
    device = devices.select_device(parameters.device)
    configure_torch(parameters.threads)
    dtype = devices.select_dtype(recipe.precision, device)
    start = time.perf_counter()
    network, data = prepare_training(model, parameters, recipe, parameters.seed)
    tqdm.write(networks.summarize_layers(network))
    data = data.to(device)
    checkpoint = Checkpoint(artifacts.checkpoint(model), compute_fingerprint(model, parameters, device))
    with artifacts.atomic_write(artifacts.training(model)) as folder:
        live = open_live(folder)
        for metrics in fit(network, data, recipe, parameters.seed, checkpoint):
            for name, value in metrics.items():
                live.log_metric(name, value)
            live.next_step()
            if is_preempted():
                raise UserError("stopped: a newer process resumes from the checkpoint")
        # Not in a `with`, which would call end() after Ctrl-C too, when it may wait forever for a thread of DVCLive.
        live.end()
        calibration = calibrate(network, data.validation, parameters.labelled_fraction)
        artifacts.write_json(folder / artifacts.calibration(model).name, calibration)
        environment = devices.environment(device, dtype)
        artifacts.write_json(folder / artifacts.training_environment(model).name, environment)
    hardware = f"{device.type}, in {environment['precision']}"
    if environment["precision"] != recipe.precision:
        hardware += f" because it has no {recipe.precision}"
    print(f"{model}: trained in {time.perf_counter() - start:.1f} s on {hardware}")
    print("  ".join(f"{name} {value:.3f}" for name, value in calibration.items()))

    with artifacts.atomic_write(artifacts.weights(model)) as path:
        path.write_bytes(networks.serialize_tensors(network.state_dict()))


def configure_torch(threads: int) -> None:
    """Configure PyTorch for fast, deterministic training with `threads` on the CPU."""
    devices.set_cpu_threads(threads)
    devices.keep_freed_memory()
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    # filling takes time, and nothing reads uninitialized memory
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # missing in PyTorch's stubs


def prepare_training(model: str, parameters: Params, recipe: Recipe, seed: int) -> tuple[nn.Sequential, TrainingData]:
    """Return the network with its initial weights, and the data, all from the seed."""
    settings = parameters.data
    training, validation = split_validation(dataset.load_training_set(settings), settings.validation_fraction, seed)
    outliers = training.images[:0]
    if recipe.outliers:
        count = math.ceil(OUTLIERS_PER_IMAGE * len(training))
        outliers = make_outliers(training, parameters.outlier_sources, count, seed)
    torch.manual_seed(seed)
    layers, classes = parameters.networks[model], len(settings.classes)
    network = networks.build_network(layers, classes, recipe.dropout, recipe.initialization)
    return network, TrainingData(training, validation, outliers)


def open_live(folder: Path) -> Live:
    """Open DVCLive's log of the metrics of each epoch, counted from 1. Raises UserError without a git commit."""
    try:
        live = Live(str(folder), save_dvc_exp=False, dvcyaml=None, report=None)
    except SCMError as error:
        raise UserError(f"DVCLive: expected a git repository with a commit, got {one_line(error)}") from error
    live.step = 1
    return live


def split_validation(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Return the training split and the validation split, a random `fraction` of at least one image."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    size = max(1, round(fraction * len(order)))
    return split[order[size:]], split[order[:size]]


def fit(
    network: nn.Module, data: TrainingData, recipe: Recipe, seed: int, checkpoint: Checkpoint
) -> Iterator[dict[str, float]]:
    """Train in place, on the device of the images, and yield loss, accuracy, val_loss and val_accuracy of each epoch.

    loss and accuracy are means over the images while they are trained on, with label smoothing and augmentation but
    without outliers; val_loss and val_accuracy are without all of these. The random numbers of an epoch depend only on
    the seed and the number of the epoch, so that a training can resume at any epoch. Raises UserError at the end of an
    epoch whose loss is not finite.
    """
    training = data.training
    device = training.labels.device
    dtype = devices.select_dtype(recipe.precision, device)
    network.to(device).to(memory_format=torch.channels_last)
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
    yield from history  # the epochs before the interruption, for the new log
    with tqdm(total=recipe.epochs * steps, initial=len(history) * steps, unit="step", disable=None) as progress:
        for epoch in range(len(history), recipe.epochs):
            start = time.perf_counter()
            torch.manual_seed(epoch_seed(seed, epoch))
            network.train()
            sums = torch.zeros(2, device=device)
            for step, batch in enumerate(shuffled_batches(training, steps), start=epoch * steps):
                fraction_done = (step + 0.5) / (recipe.epochs * steps)
                optimizer.param_groups[0]["lr"] = learning_rate(recipe, fraction_done)
                images = batch.images
                if recipe.outliers:
                    images = torch.cat([images, random_outliers(data.outliers, len(batch), recipe.outliers.fraction)])
                if recipe.augmentation and fraction_done < recipe.augment_until:
                    images = augment(images, recipe.augmentation)
                else:
                    images = scale_pixels(images)
                sums += train_step(network, optimizer, images, batch.labels, recipe, dtype)
                progress.update()
            loss, accuracy = (sums / len(training)).tolist()
            metrics = {"loss": loss, "accuracy": accuracy} | validate(network, data.validation)
            if not math.isfinite(metrics["loss"] + metrics["val_loss"]):
                found = f"{metrics['loss']} and {metrics['val_loss']}"
                raise UserError(f"loss and val_loss: expected finite numbers, got {found}; try a lower learning_rate")
            print_epoch(epoch + 1, recipe.epochs, metrics, time.perf_counter() - start)
            history.append(metrics)
            checkpoint.save(network, optimizer, history)
            yield metrics


def epoch_seed(seed: int, epoch: int) -> int:
    """Return a 32-bit seed for each combination of seed and epoch, as NumPy's SeedSequence mixes them."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


def learning_rate(recipe: Recipe, fraction_done: float) -> float:
    """Return the learning rate when a fraction of the training's steps, from 0 to 1, is done.

    With a warm-up it follows a one-cycle schedule (Smith & Topin 2017, arXiv:1708.07120): from 0 up to the recipe's
    rate and back to 0, with cosine annealing as in PyTorch's OneCycleLR. Without a warm-up it is constant.
    """
    if recipe.warmup_fraction is None:
        return recipe.learning_rate
    warmup = recipe.warmup_fraction
    ramp = fraction_done / warmup if fraction_done < warmup else (1 - fraction_done) / (1 - warmup)
    return recipe.learning_rate * (1 - math.cos(math.pi * ramp)) / 2


def shuffled_batches(split: Split, count: int) -> Iterator[Split]:
    """Yield every image once, in `count` random batches of nearly equal size: none is too small for batch norm."""
    order = torch.randperm(len(split)).to(split.labels.device)  # drawn on the CPU: same order on every device
    return (split[indices] for indices in order.tensor_split(count))


def random_outliers(outliers: Tensor, batch_size: int, fraction: float) -> Tensor:
    """Return the outliers of one batch, drawn at random: a fraction of its size."""
    count = math.ceil(fraction * batch_size)
    return outliers[torch.randint(len(outliers), (count,)).to(outliers.device)]


def train_step(
    network: nn.Module, optimizer: Optimizer, images: Tensor, labels: Tensor, recipe: Recipe, dtype: torch.dtype
) -> Tensor:
    """Take one optimizer step; return the summed loss and number of correct predictions of the labels, float32 [2].

    The layers compute in `dtype`; the weights, the loss and the step are float32. Images without a label are outliers:
    their loss is the cross-entropy to the uniform distribution. Nothing here synchronizes with the device: the sums are
    read once an epoch.
    """
    with torch.autocast(labels.device.type, dtype, enabled=dtype is not torch.float32):
        all_logits = network(images)
    logits, outlier_logits = all_logits.float().tensor_split([len(labels)])
    loss = total = cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    if recipe.outliers:
        total = loss - recipe.outliers.weight * outlier_logits.log_softmax(dim=1).mean()
    optimizer.zero_grad()
    total.backward()
    optimizer.step()
    return torch.stack([loss.detach() * len(labels), (logits.argmax(dim=1) == labels).sum()])


def print_epoch(epoch: int, epochs: int, metrics: dict[str, float], seconds: float) -> None:
    """Print the metrics of a finished epoch as one line."""
    values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    tqdm.write(f"epoch {epoch:>{len(str(epochs))}}/{epochs}  {values}  {seconds:.1f} s")


def validate(network: nn.Module, validation: Split) -> dict[str, float]:
    """Return the mean loss and the accuracy on the validation split."""
    logits = networks.predict_logits(network, validation.images)
    return {
        "val_loss": cross_entropy(logits, validation.labels).item(),
        "val_accuracy": (logits.argmax(dim=1) == validation.labels).float().mean().item(),
    }


if __name__ == "__main__":
    command.run(main, "model")
