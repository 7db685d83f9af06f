"""Compare changed parameters with the committed ones over several seeds: is a change better, or was it the seed?

Every seed is a DVC experiment, on one thread; as many run in parallel as CPUs. Experiments that are already there are
not run again. A difference is the mean of the differences between runs with the same seed, with its 95 % confidence
interval from Student's t-distribution.
"""

import argparse
import hashlib
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import joblib
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from scipy import stats

from checks import lock
from checks.process import capture
from experiments.queue import run_missing
from stages import artifacts, command
from stages.errors import UserError

SEEDS = [0, 1, 2, 3, 4]
CONFIDENCE = 0.95
Metrics = dict[str, float]  # by MODEL.METRIC


def main() -> None:
    options = parse_options()
    print(compare(options.set_param, options.targets, options.seeds))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.seeds", description=__doc__)
    parser.add_argument(
        "targets",
        nargs="*",
        type=parse_target,
        metavar="TARGET",
        help="stage, such as evaluate@fnn; default: all",
    )
    parser.add_argument(
        "-S",
        "--set-param",
        type=parse_change,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a change, as for dvc exp run",
    )
    parser.add_argument(
        "--seeds", type=parse_seeds, default=SEEDS, metavar="N,N,…", help="at least two; default: 0,1,2,3,4"
    )
    return parser.parse_args()


def parse_seeds(text: str) -> list[int]:
    """Return the seeds in a command-line argument. Raises ArgumentTypeError if they are not at least two."""
    seeds = {int(seed) for seed in text.split(",") if seed.isdecimal() and int(seed) < 2**32}
    if len(seeds) < 2 or len(seeds) != len(text.split(",")):
        raise argparse.ArgumentTypeError(f"expected two or more different integers >= 0, with commas, got {text!r}")
    return sorted(seeds)


def parse_change(text: str) -> str:
    """Return a change from the command line, in Hydra's syntax, as DVC reads it.

    Raises ArgumentTypeError if it has several values, or changes what every experiment sets.
    """
    key, separator, value = text.partition("=")
    try:
        change = OverridesParser.create().parse_override(key.rpartition(":")[2] + separator + value)  # without a file
    except HydraException as error:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}") from error
    if change.key_or_group in ("seed", "threads"):
        raise argparse.ArgumentTypeError(f"expected a parameter other than seed and threads, got {text!r}; see --seeds")
    if change.is_sweep_override():
        raise argparse.ArgumentTypeError(f"expected one value, got {text!r}; run the command once for each")
    return text


def parse_target(text: str) -> str:
    """Return the stage in a command-line argument. Raises ArgumentTypeError if it is empty."""
    if not text:
        raise argparse.ArgumentTypeError("expected a stage, got ''")
    return text


def compare(changes: Sequence[str], targets: Sequence[str], seeds: Sequence[int]) -> str:
    """Return a Markdown table of the metrics with the committed parameters and, if there are changes, with these.

    `changes` are KEY=VALUE. Raises UserError if the workspace has uncommitted changes other than results, or if an
    experiment fails.
    """
    inputs = [".", f":!{artifacts.ROOT}", f":!{lock.FILE}"]
    if status := capture("git", "status", "--porcelain", "--untracked-files=no", "--", *inputs).splitlines():
        files = ", ".join(line[3:] for line in status)
        raise UserError(f"workspace: expected the last commit, got changes of {files}")
    variants = [[], [*changes]] if changes else [[]]
    names = [[experiment_name(variant, targets, seed) for seed in seeds] for variant in variants]
    commands = {}
    for variant, row in zip(reversed(variants), reversed(names)):  # a mistake in the changes is found first
        for seed, name in zip(seeds, row):
            settings = [f"seed={seed}", "threads=1", *variant]
            commands[name] = [*(part for setting in settings for part in ("-S", setting)), *targets]
    results = run_missing(commands, joblib.cpu_count())
    return metrics_table([[read_metrics(results[name].revision) for name in row] for row in names])


def experiment_name(changes: Sequence[str], targets: Sequence[str], seed: int) -> str:
    """Return the name of the experiment with these changes and this seed."""
    ordered = sorted(changes, key=lambda change: change.partition("=")[0])  # of the same key, the last one counts
    digest = hashlib.sha256(json.dumps([ordered, sorted(targets)]).encode()).hexdigest()
    return f"{'changed' if changes else 'committed'}-{digest[:8]}-seed-{seed}"


def read_metrics(revision: str) -> Metrics:
    """Return the metrics of every model: on the validation split, with the prefix val_, and on the test set."""
    metrics: Metrics = {}
    for file in map(Path, capture("git", "ls-tree", "-r", "--name-only", revision, f"{artifacts.ROOT}/").splitlines()):
        if file.match(str(artifacts.training("*") / "metrics.json")):
            epoch = json.loads(capture("git", "show", f"{revision}:{file}"))
            model = file.relative_to(artifacts.ROOT).parts[0]
            metrics |= {f"{model}.{name}": epoch[name] for name in ("val_accuracy", "val_loss")}
        elif file.match(str(artifacts.metrics("*"))) or file.match(str(artifacts.metrics_int8("*"))):
            for model, values in json.loads(capture("git", "show", f"{revision}:{file}")).items():
                metrics |= {f"{model}.{name}": value for name, value in values.items()}
    return metrics


def metrics_table(variants: list[list[Metrics]]) -> str:
    """Return a Markdown table of the metrics that depend on the seed: one row each, and one list a variant.

    The first variant are the committed parameters. Values are mean ± standard deviation over the seeds.
    """
    committed, *changed = variants
    header = ["metric", "committed", *(["changed", "difference", "95 % interval", ""] if changed else [])]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for name in sorted(committed[0], key=lambda name: (name.partition(".")[0], ".val_" not in name)):
        rows = [[metrics[name] for metrics in variant if name in metrics] for variant in variants]
        if any(len(row) < len(committed) for row in rows) or len({value for row in rows for value in row}) == 1:
            continue  # metrics of stages that did not run
        cells = [name, *(f"{statistics.mean(row):.5f} ± {statistics.stdev(row):.5f}" for row in rows)]
        if changed:
            cells += difference_cells([after - before for before, after in zip(*rows)])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def difference_cells(differences: list[float]) -> list[str]:
    """Return the mean of paired differences, its confidence interval, and what follows from it."""
    mean, error = statistics.mean(differences), statistics.stdev(differences) / len(differences) ** 0.5
    margin = error * stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)
    low, high = mean - margin, mean + margin
    verdict = "no difference seen" if low <= 0 <= high else "higher" if mean > 0 else "lower"
    return [f"{mean:+.5f}", f"{low:+.5f} to {high:+.5f}", verdict]


if __name__ == "__main__":
    command.call(main)
