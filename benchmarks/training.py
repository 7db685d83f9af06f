"""Compare the accuracy and the training time of the course notebook's loop with those of the pipeline's recipes.

The notebook's loop is that of its PyTorch half: torchvision's data set with a transform of each image, a DataLoader,
batches of 128, plain SGD, the notebook's order of layers, 10 epochs of all 60,000 training images. The recipes are
those of params.yaml, on the training split without the validation split. The trainings alternate between the setups,
each in a process of its own. Seconds are those of the training, with the making of outliers, and a recipe's include
the validation and the checkpoint after each epoch. The test accuracy after each epoch is measured outside of them; the
first epoch that ends with 99 % gives the time to 99 %.

With --shared, compare waiting policies of OpenMP on an idle and on a shared CPU instead.
"""

import argparse
import functools
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

from benchmarks import shared_cpu, trials
from stages import artifacts, devices, images, params, train
from stages.errors import UserError

NOTEBOOK = "notebook's loop"  # not "notebook", which is a recipe for our loop
NOTEBOOK_EPOCHS = 10
TARGET_ACCURACY = 0.99  # on the test set, as in https://github.com/tuomaso/train_mnist_fast
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
class TrainingResult:
    """One finished training."""

    model: str
    setup: str  # NOTEBOOK, or the name of a recipe
    seed: int
    epochs: int
    accuracy: float  # on the test set
    seconds: float
    seconds_to_target: float | None  # until the end of the first epoch with TARGET_ACCURACY, if there is one
    images: int  # over all epochs
    flop: float  # of the forward and backward passes, without the optimizer
    peak: float  # of this machine, FLOP/s, measured just before

    def __str__(self) -> str:
        return f"{self.model} {self.setup}, seed {self.seed}: {self.accuracy:.2%}, {self.seconds:.1f} s"


def main() -> None:
    options = parse_options()
    try:
        if options.shared:
            print(shared_cpu.shared_cpu_table(options.models, options.rounds, options.spin_counts))
        else:
            compare_setups(options)
    except UserError as error:
        sys.exit(f"training: {error}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    models = list(NOTEBOOK_NETWORKS)
    parser.add_argument("--models", nargs="+", choices=models, default=models)
    parser.add_argument(
        "--recipes", nargs="+", default=["default", "fast"], help="of params.yaml (default: default fast)"
    )
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", default=[0, 1, 2, 3, 4])
    parser.add_argument("--quick", action="store_true", help="one epoch and one seed; with --shared, one round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every training to a JSON file")
    parser.add_argument("--shared", action="store_true", help="compare waiting policies of OpenMP on a shared CPU")
    parser.add_argument("--rounds", type=int, default=3, help="of --shared (default: 3)")
    parser.add_argument(
        "--spin-counts",
        nargs="+",
        type=int,
        metavar="COUNT",
        default=shared_cpu.default_spin_counts(),
        help="values of GOMP_SPINCOUNT for --shared (default: libgomp's, passive waiting, the pipeline's)",
    )
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.rounds = options.seeds[:1], 1
    return options


def compare_setups(options: argparse.Namespace) -> None:
    """Train each model with each setup and seed, and print the table. Raises UserError for an unknown recipe."""
    recipes = params.load_params().recipes
    for model, recipe in itertools.product(options.models, options.recipes):
        if model not in recipes.get(recipe, {}):
            known = ", ".join(name for name in recipes if model in recipes[name])
            raise UserError(f"--recipes: expected recipes of {model} in params.yaml ({known}), got {recipe}")
    setups = [NOTEBOOK, *options.recipes]
    tasks = [(model, setup, seed) for seed in options.seeds for model in options.models for setup in setups]
    results = trials.run_trials(functools.partial(train_and_evaluate, quick=options.quick), tasks)
    print(training_table(results))
    if options.json:
        artifacts.write_json(options.json, {"trainings": [asdict(result) for result in results]})


def train_and_evaluate(model: str, setup: str, seed: int, quick: bool) -> TrainingResult:
    """Measure the peak FLOP/s of the device, train, and evaluate on the test set after each epoch."""
    parameters = params.load_params(model)
    device = devices.select_device(parameters.device)
    peak = matrix_multiply_peak(device)
    training = train_notebook(model, seed, device) if setup == NOTEBOOK else train_recipe(setup, model, seed, device)
    epochs, image_count, seconds, seconds_to_target = 0, 0, 0.0, None
    start = time.perf_counter()
    for network, count in itertools.islice(training, 1 if quick else None):
        seconds += time.perf_counter() - start
        epochs += 1
        image_count += count
        accuracy = trials.evaluate_accuracy(network, parameters.data)
        if seconds_to_target is None and accuracy >= TARGET_ACCURACY:
            seconds_to_target = seconds
        start = time.perf_counter()
    flop = image_count * flop_per_image(network)
    return TrainingResult(model, setup, seed, epochs, accuracy, seconds, seconds_to_target, image_count, flop, peak)


def matrix_multiply_peak(device: torch.device, size: int = 2048, repeats: int = 20) -> float:
    """Return the best FLOP/s of float32 matrix products on the device."""
    left, right = torch.rand(size, size, device=device), torch.rand(size, size, device=device)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        (left @ right)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def train_notebook(model: str, seed: int, device: torch.device) -> Iterator[tuple[nn.Module, int]]:
    """Train with the notebook's loop; yield the network and the number of images after each epoch."""
    torch.manual_seed(seed)
    network = NOTEBOOK_NETWORKS[model]().to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=1e-4)
    with tempfile.TemporaryDirectory() as root:
        raw = Path(root) / "MNIST" / "raw"  # where torchvision expects the files
        raw.parent.mkdir()
        raw.symlink_to(artifacts.DATA.resolve())
        training = MNIST(root, train=True, transform=ToTensor())
    batches = DataLoader(training, batch_size=128, shuffle=True)
    for _ in range(NOTEBOOK_EPOCHS):
        network.train()
        running_loss = 0.0
        for batch, labels in batches:
            optimizer.zero_grad()
            loss = cross_entropy(network(batch.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
        yield network, len(training)


def train_recipe(name: str, model: str, seed: int, device: torch.device) -> Iterator[tuple[nn.Module, int]]:
    """Train with a recipe of params.yaml; yield the network and the number of images after each epoch."""
    parameters = params.load_params(model)
    recipe = parameters.recipes[name][model]
    train.configure_torch(parameters.threads)
    network, data = train.prepare_training(model, parameters, recipe, seed)
    for _ in trials.fit_from_scratch(network, data.to(device), recipe, seed):
        yield network, len(data.training)


def flop_per_image(network: nn.Module) -> float:
    """Count the floating-point operations of the matrix products and convolutions in a forward and backward pass."""
    network.train()
    batch = torch.zeros(128, *images.IMAGE_SHAPE, device=next(network.parameters()).device)
    with FlopCounterMode(display=False) as counter:
        network(batch).sum().backward()
    return float(counter.get_total_flops() / len(batch))


def training_table(results: list[TrainingResult]) -> str:
    """Return a Markdown table of means over the seeds; min is the lowest accuracy of a seed.

    The time to 99 % is left out if not all seeds reach it.
    """
    peak = statistics.median(result.peak for result in results)
    columns = ["model", "setup", "seeds", "epochs", "test accuracy", "min", "seconds", "to 99 %", "images/s"]
    columns += ["% of peak FLOP/s", "speed-up"]
    lines = [
        f"Peak of this machine: {peak / 1e9:.0f} GFLOP/s in float32 matrix products",
        "",
        f"| {' | '.join(columns)} |",
        "|" + len(columns) * "---|",
    ]
    groups: dict[tuple[str, str], list[TrainingResult]] = {}
    for result in results:
        groups.setdefault((result.model, result.setup), []).append(result)
    for (model, setup), group in groups.items():
        accuracies = [result.accuracy for result in group]
        deviation = f" ± {statistics.stdev(accuracies):.2%}" if len(group) > 1 else ""
        seconds = statistics.mean(result.seconds for result in group)
        to_target = [result.seconds_to_target for result in group if result.seconds_to_target is not None]
        all_reached = len(to_target) == len(group)
        notebook_seconds = statistics.mean(result.seconds for result in groups[model, NOTEBOOK])
        lines.append(
            f"| {model} | {setup} | {len(group)} | {group[0].epochs} | {statistics.mean(accuracies):.2%}{deviation} "
            f"| {min(accuracies):.2%} | {seconds:.1f} | {f'{statistics.mean(to_target):.1f}' if all_reached else ''} "
            f"| {group[0].images / seconds:,.0f} "
            f"| {group[0].flop / seconds / peak:.0%} | {notebook_seconds / seconds:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
