"""Run the committed pipeline in a fresh clone, and compare every output's digest with dvc.lock.

The training uses the number of threads that the commit records. Exits with 0 if all outputs are equal; with 3 if only
outputs differ that depend on weights, as on another type of processor, and each accuracy is within the 95 % interval
that the commit records; with 1 otherwise.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checks import lock
from checks.process import run
from stages import artifacts, command

EQUAL, FAILED, CLOSE = 0, 1, 3
WITHOUT_WEIGHTS = {artifacts.triton_config("").name, artifacts.labels("").name}  # files that no weight influences
Json = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """The outputs of a pipeline in a folder."""

    digests: dict[tuple[str, str], str | None]  # of each output, by stage and path
    accuracies: dict[Path, Json]  # the files with an accuracy on the test set
    environments: dict[Path, Json]  # the files with the environment of a training


def main() -> None:
    """Reproduce the commit; exit with 0 if all outputs are equal, 3 if models differ within limits, 1 otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        run("git", "clone", "--quiet", ".", str(clone))
        run("dvc", "cache", "dir", "--quiet", "--local", ".dvc/cache", folder=clone)  # not the user's shared cache
        locked = read_results(clone)
        (clone / lock.FILE).unlink()  # otherwise DVC skips stages whose outputs are in git
        artifacts.remove(clone / artifacts.ROOT)
        run("dvc", "repro", folder=clone, **locked_threads(locked))
        reproduced = read_results(clone)
    print(comparison_table(locked, reproduced))
    sys.exit(exit_status(locked, reproduced))


def read_results(clone: Path) -> Results:
    """Read the results in a folder. Raises UserError if it has no valid dvc.lock."""

    def read_all(*patterns: Path) -> dict[Path, Json]:
        files = [file for pattern in patterns for file in sorted(clone.glob(str(pattern)))]
        return {file.relative_to(clone): artifacts.read_json(file) for file in files}

    accuracies = read_all(artifacts.evaluation("*"), artifacts.verification_int8("*"))
    return Results(lock.locked_digests(clone), accuracies, read_all(artifacts.training_environment("*")))


def locked_threads(locked: Results) -> dict[str, str]:
    """Return the environment variable that gives a training the locked number of threads."""
    threads = {environment["threads"] for environment in locked.environments.values() if "threads" in environment}
    return {"OMP_NUM_THREADS": str(max(threads))} if threads else {}


def comparison_table(locked: Results, reproduced: Results) -> str:
    """Return tables of all digests, of the accuracies that differ, and of what differs in the environments."""
    lines = ["| output | locked | reproduced | |", "|---|---|---|---|"]
    for output in locked.digests | reproduced.digests:
        digests = [results.digests.get(output, "none") for results in (locked, reproduced)]
        verdict = "equal" if digests[0] == digests[1] else "DIFFERS"
        lines.append(f"| {output[1]} | {digests[0]} | {digests[1]} | {verdict} |")
    differing = [file for file in reproduced.accuracies if differs(file, locked.accuracies, reproduced.accuracies)]
    if differing:
        lines += ["", "| accuracy | locked | its 95 % interval | reproduced | |", "|---|---|---|---|---|"]
    for file in differing:
        before, after = locked.accuracies[file], reproduced.accuracies[file]
        interval = f"{before['accuracy_low']:.2%} to {before['accuracy_high']:.2%}"
        verdict = "inside" if is_close(before, after) else "OUTSIDE"
        lines.append(f"| {file} | {before['accuracy']:.2%} | {interval} | {after['accuracy']:.2%} | {verdict} |")
    return "\n".join([*lines, *environment_lines(locked, reproduced)])


def environment_lines(locked: Results, reproduced: Results) -> list[str]:
    """Return a line for each difference between the environments of the trainings."""
    lines = []
    for file in reproduced.environments:
        if differs(file, locked.environments, reproduced.environments):
            before, after = locked.environments[file], reproduced.environments[file]
            keys = [key for key in before | after if before.get(key) != after.get(key)]
            lines += ["", *(f"{file}: {key}: locked {before.get(key)}, reproduced {after.get(key)}" for key in keys)]
    return lines


def differs(file: Path, locked: dict[Path, Json], reproduced: dict[Path, Json]) -> bool:
    """Return whether a file exists in both results with different content."""
    return file in locked and locked[file] != reproduced[file]


def exit_status(locked: Results, reproduced: Results) -> int:
    """Return EQUAL, CLOSE or FAILED."""
    if reproduced.digests == locked.digests:
        return EQUAL
    same_outputs = reproduced.digests.keys() == locked.digests.keys()
    differing = reproduced.digests.items() - locked.digests.items()
    only_models = all(depends_on_weights(*output) for output, _ in differing)
    all_close = all(is_close(before, reproduced.accuracies.get(file)) for file, before in locked.accuracies.items())
    return CLOSE if same_outputs and only_models and all_close else FAILED


def depends_on_weights(stage: str, path: str) -> bool:
    """Return whether an output may differ on another type of processor."""
    return "@" in stage and Path(path).name not in WITHOUT_WEIGHTS  # DVC's names of matrix stages contain an @


def is_close(locked: Json, reproduced: Json | None) -> bool:
    """Return whether the reproduced accuracy is within the 95 % interval of the locked one."""
    return reproduced is not None and locked["accuracy_low"] <= reproduced["accuracy"] <= locked["accuracy_high"]


if __name__ == "__main__":
    command.run(main)
