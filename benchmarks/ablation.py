"""Ablation study of the default recipes: train each one in full, and with one of its parts removed at a time.

The remaining hyperparameters are not tuned again. Accuracies are means over the seeds. Nothing is timed, so each
training has one thread and there are as many trainings in parallel as CPUs; in total they take hours.
"""

import argparse
import statistics
import sys
from dataclasses import dataclass

import joblib

from benchmarks import trials
from stages import params, train
from stages.errors import UserError
from stages.params import Recipe

NOTHING = "nothing"  # the full recipe


@dataclass
class AblationResult:
    """The accuracies of one finished training."""

    model: str
    removed: str  # NOTHING, or the removed part of the recipe
    seed: int
    validation_accuracy: float
    test_accuracy: float

    def __str__(self) -> str:
        accuracies = f"validation {self.validation_accuracy:.2%}, test {self.test_accuracy:.2%}"
        return f"{self.model} without {self.removed}, seed {self.seed}: {accuracies}"


def main() -> None:
    options = parse_options()
    try:
        parameters = params.load_params()
        tasks = [
            (model, part, seed)
            for model in options.models or parameters.models
            for part in ablated_recipes(params.load_params(model).recipes[parameters.recipe][model])
            for seed in options.seeds
        ]
        print(ablation_table(trials.run_trials(train_without, tasks, parallel=joblib.cpu_count())))
    except UserError as error:
        sys.exit(f"ablation: {error}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="default: the models of params.yaml")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", default=[0, 1, 2, 3, 4])
    return parser.parse_args()


def ablated_recipes(recipe: Recipe) -> dict[str, Recipe]:
    """Return the full recipe and one recipe for each removed part, by the name of the part.

    Parts are the optional hyperparameters, and each kind of augmentation.
    """
    recipes = {NOTHING: recipe}
    for part, field in Recipe.model_fields.items():
        if not field.is_required() and getattr(recipe, part) != field.default:
            recipes[part] = recipe.model_copy(update={part: field.default})
    if recipe.augmentation:
        for kind, limit in recipe.augmentation:
            if limit:
                others = recipe.augmentation.model_copy(update={kind: 0.0})
                recipes[f"augmentation.{kind}"] = recipe.model_copy(update={"augmentation": others})
    return recipes


def train_without(model: str, removed: str, seed: int) -> AblationResult:
    """Train on one thread with a part of the recipe removed, and evaluate."""
    parameters = params.load_params(model)
    recipe = ablated_recipes(parameters.recipes[parameters.recipe][model])[removed]
    train.configure_torch(threads=1)
    network, data = train.prepare_training(model, parameters, recipe, seed)
    *_, last_epoch = trials.fit_from_scratch(network, data, recipe, seed)
    test_accuracy = trials.evaluate_accuracy(network, parameters.data)
    return AblationResult(model, removed, seed, last_epoch["val_accuracy"], test_accuracy)


def ablation_table(results: list[AblationResult]) -> str:
    """Return a Markdown table of mean accuracies and of each part's contribution.

    The contribution is the validation accuracy of the full recipe minus that without the part: the mean of the
    differences between trainings with the same seed, and its standard error.
    """
    lines = [
        "| model | removed | seeds | validation accuracy | test accuracy | contribution to validation accuracy |",
        "|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], dict[int, AblationResult]] = {}
    for result in results:
        groups.setdefault((result.model, result.removed), {})[result.seed] = result
    for (model, removed), group in groups.items():
        validation = statistics.mean(result.validation_accuracy for result in group.values())
        test = statistics.mean(result.test_accuracy for result in group.values())
        full = groups[model, NOTHING]
        gains = [full[seed].validation_accuracy - result.validation_accuracy for seed, result in group.items()]
        error = f" ± {statistics.stdev(gains) / len(gains) ** 0.5:.2%}" if len(gains) > 1 else ""
        contribution = "" if removed == NOTHING else f"{statistics.mean(gains):+.2%}{error}"
        lines.append(f"| {model} | {removed} | {len(group)} | {validation:.2%} | {test:.2%} | {contribution} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
