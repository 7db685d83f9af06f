"""Train the default recipes whole, and without one part at a time, and compare the accuracies in validation.

What stays is not tuned anew. Each training has one thread of the CPU, and as many run at once as there are cores:
nothing here is timed. All of it takes hours.
"""

import argparse
import statistics
import sys
from dataclasses import dataclass

import torch

from benchmarks import trials
from stages import params, train
from stages.errors import UserError
from stages.params import Recipe

NOTHING = "nothing"


@dataclass
class Training:
    """One finished training."""

    model: str
    without: str  # NOTHING, or the part that was switched off
    seed: int
    validation: float  # accuracies
    test: float

    def __str__(self) -> str:
        accuracies = f"validation {self.validation:.2%}, test {self.test:.2%}"
        return f"{self.model} without {self.without} seed {self.seed}: {accuracies}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="of params.yaml; else all that it builds")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    try:
        parameters = params.load()
        models = options.models or parameters.models
        tasks = [
            (model, part, seed)
            for model in models
            for part in variants(params.load(model).recipes[parameters.recipe][model])
            for seed in options.seeds
        ]
        print(table(trials.run(measure, tasks, at_once=torch.get_num_threads())))
    except UserError as error:
        sys.exit(f"ablation: {error}")


def variants(recipe: Recipe) -> dict[str, Recipe]:
    """Return the recipe, and what is left of it without each of its parts and each way of its distortion."""
    recipes = {NOTHING: recipe}
    for part, field in Recipe.model_fields.items():
        if not field.is_required() and getattr(recipe, part) != field.default:
            recipes[part] = recipe.model_copy(update={part: field.default})
    for way, limit in recipe.distortion or ():
        if limit:
            others = recipe.distortion.model_copy(update={way: 0.0})
            recipes[f"distortion.{way}"] = recipe.model_copy(update={"distortion": others})
    return recipes


def measure(model: str, without: str, seed: int) -> Training:
    """Train and test without a part."""
    parameters = params.load(model)
    recipe = variants(parameters.recipes[parameters.recipe][model])[without]
    train.set_up(threads=1)
    network, training, validation = train.prepare(model, parameters, recipe, seed)
    *_, last = trials.fit(network, training, validation, recipe, seed)
    return Training(model, without, seed, last["val_accuracy"], trials.accuracy_on_test_set(network, parameters.data))


def table(trainings: list[Training]) -> str:
    """Lay out means over the seeds, and what each part brings in validation, with the standard error of that mean."""
    lines = [
        "| model | without | seeds | validation | test | what the part brings in validation |",
        "|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], dict[int, Training]] = {}
    for training in trainings:
        groups.setdefault((training.model, training.without), {})[training.seed] = training
    for (model, without), group in groups.items():
        validation = statistics.mean(training.validation for training in group.values())
        test = statistics.mean(training.test for training in group.values())
        gains = [groups[model, NOTHING][seed].validation - training.validation for seed, training in group.items()]
        error = f" ± {statistics.stdev(gains) / len(gains) ** 0.5:.2%}" if len(gains) > 1 else ""
        gain = "" if without == NOTHING else f"{statistics.mean(gains):+.2%}{error}"
        lines.append(f"| {model} | {without} | {len(group)} | {validation:.2%} | {test:.2%} | {gain} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
