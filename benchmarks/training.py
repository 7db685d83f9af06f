"""Train the course notebook's way and ours, in turns, and compare accuracy and time.

The notebook's way is its PyTorch half: torchvision's data set with a transform for each image, a DataLoader, batches
of 128, plain SGD, its order of layers, 10 epochs of all 60,000 training images. Our ways are the recipes of
params.yaml, on the images that are not held out for validation. Every training has a process of its own. Seconds are
those of the training loop; ours include the validation and the checkpoint after each epoch.
"""

import argparse
import functools
import itertools
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

from benchmarks import trials
from stages import artifacts, dataset, params, train
from stages.errors import UserError

NOTEBOOK = "notebook's loop"  # not "notebook", which is a recipe for our loop
NOTEBOOK_EPOCHS = 10
NOTEBOOK_NETWORKS = {
    "fnn": lambda: nn.Sequential(
        *(nn.Flatten(), nn.Linear(784, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.2)),
        *(nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU()),
        nn.Linear(64, 10),
    ),
    "cnn": lambda: nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.2)),
        nn.Linear(128, 10),
    ),
}


@dataclass
class Training:
    """One finished training."""

    model: str
    way: str  # NOTEBOOK, or the name of a recipe
    seed: int
    epochs: int
    accuracy: float  # on the test set
    seconds: float
    images: int  # trained on, over all epochs
    flop: float  # spent on them, without the optimizer
    peak: float  # of this machine just before, in FLOP/s

    def __str__(self) -> str:
        return f"{self.model} {self.way} seed {self.seed}: {self.accuracy:.2%}, {self.seconds:.1f} s"


def main() -> None:
    options = parse_options()
    try:
        parameters = params.load()
        ways = [NOTEBOOK, *options.recipes]
        tasks = [(model, way, seed) for seed in options.seeds for model in options.models for way in ways]
        for model, way, _ in tasks:
            if way != NOTEBOOK and model not in parameters.recipes.get(way, {}):
                raise UserError(f"params.yaml has no recipes.{way}.{model}; recipes: {', '.join(parameters.recipes)}")
        trainings = trials.run(functools.partial(measure, quick=options.quick), tasks)
    except UserError as error:
        sys.exit(f"training: {error}")
    print(table(trainings))
    if options.json:
        artifacts.write_json(options.json, {"trainings": [asdict(training) for training in trainings]})


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=list(NOTEBOOK_NETWORKS), default=list(NOTEBOOK_NETWORKS))
    parser.add_argument("--recipes", nargs="+", default=["default", "fast"], help="of params.yaml")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--quick", action="store_true", help="a short look: one epoch, one seed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every training there as well")
    options = parser.parse_args()
    if options.quick:
        options.seeds = options.seeds[:1]
    return options


def measure(model: str, way: str, seed: int, quick: bool) -> Training:
    """Measure the machine's peak, train, and test."""
    peak = matrix_multiply_peak()
    train_it = train_notebook if way == NOTEBOOK else functools.partial(train_recipe, way)
    network, epochs, images, seconds = train_it(model, seed, quick)
    accuracy = trials.accuracy_on_test_set(network, params.load().data)
    return Training(model, way, seed, epochs, accuracy, seconds, images, images * flop_per_image(network), peak)


def matrix_multiply_peak(size: int = 2048, repeats: int = 20) -> float:
    """Return the best FLOP/s of float32 matrix products on the CPU."""
    left, right = torch.rand(size, size), torch.rand(size, size)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def train_notebook(model: str, seed: int, quick: bool) -> tuple[nn.Module, int, int, float]:
    """Return the trained network, the number of epochs and of images, and the seconds of the loop."""
    torch.manual_seed(seed)
    epochs = 1 if quick else NOTEBOOK_EPOCHS
    network = NOTEBOOK_NETWORKS[model]()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=1e-4)
    with tempfile.TemporaryDirectory() as root:
        raw = Path(root) / "MNIST" / "raw"
        raw.parent.mkdir()
        raw.symlink_to(artifacts.DATA.resolve())
        batches = DataLoader(MNIST(root, train=True, transform=ToTensor()), batch_size=128, shuffle=True)
    start = time.perf_counter()
    for _ in range(epochs):
        network.train()
        running_loss = 0.0
        for images, labels in batches:
            optimizer.zero_grad()
            loss = cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
    seconds = time.perf_counter() - start
    return network, epochs, epochs * len(batches.dataset), seconds


def train_recipe(name: str, model: str, seed: int, quick: bool) -> tuple[nn.Module, int, int, float]:
    """Return the same for a recipe of params.yaml."""
    parameters = params.load(model)
    recipe = parameters.recipes[name][model]
    train.set_up(parameters.threads)
    network, training, validation = train.prepare(model, parameters, recipe, seed)
    start = time.perf_counter()
    finished = trials.fit(network, training, validation, recipe, seed)
    epochs = sum(1 for _ in itertools.islice(finished, 1 if quick else None))
    seconds = time.perf_counter() - start
    return network, epochs, epochs * len(training), seconds


def flop_per_image(network: nn.Module) -> float:
    """Return the floating-point operations of a forward and a backward pass in products and convolutions."""
    network.train()
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(128, *dataset.IMAGE_SHAPE)).sum().backward()
    return counter.get_total_flops() / 128


def table(trainings: list[Training]) -> str:
    """Lay out means over the seeds, and how many times as fast as the notebook's way each way is."""
    peak = statistics.median(training.peak for training in trainings)
    lines = [
        f"Peak of this machine: {peak / 1e9:.0f} GFLOP/s in float32 matrix products",
        "",
        "| model | way | seeds | epochs | test accuracy | lowest | seconds | images/s | of peak | times as fast |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[Training]] = {}
    for training in trainings:
        groups.setdefault((training.model, training.way), []).append(training)
    for (model, way), group in groups.items():
        accuracies = [training.accuracy for training in group]
        spread = f" ± {statistics.stdev(accuracies):.2%}" if len(group) > 1 else ""
        seconds = statistics.mean(training.seconds for training in group)
        notebook_seconds = statistics.mean(training.seconds for training in groups[model, NOTEBOOK])
        lines.append(
            f"| {model} | {way} | {len(group)} | {group[0].epochs} | {statistics.mean(accuracies):.2%}{spread} "
            f"| {min(accuracies):.2%} | {seconds:.1f} | {group[0].images / seconds:,.0f} "
            f"| {group[0].flop / seconds / peak:.0%} | {notebook_seconds / seconds:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
