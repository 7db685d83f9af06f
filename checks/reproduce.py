"""Run the committed pipeline from nothing in a temporary folder, and compare every output with what dvc.lock promises.

Exits with 0 if all outputs are equal; with 3 if only models differ, as on another type of processor, and each of them
is as accurate as the commit says, within that accuracy's interval; with 1 otherwise.
"""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from checks import lock
from stages import artifacts, command
from stages.errors import UserError

EQUAL, FAILED, CLOSE = 0, 1, 3
UNTRAINED = {artifacts.triton_config("").name, artifacts.class_names("").name}  # files on which no weight bears


@dataclass(frozen=True)
class Results:
    """What a folder's pipeline has produced."""

    digests: dict[tuple[str, str], str]  # of the outputs, by stage and path
    measured: dict[Path, dict]  # accuracies on the test set, by the file that holds them


def main() -> None:
    """Reproduce the commit; exit with 0 if all is equal, 3 if models are only as accurate, 1 otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        run("git", "clone", "--quiet", ".", str(clone))
        run("dvc", "cache", "dir", "--quiet", "--local", ".dvc/cache", folder=clone)  # wherever the user's may be
        promised = read(clone)
        (clone / lock.FILE).unlink()  # else DVC skips what is in git, and keeps what no stage makes any more
        artifacts.remove(clone / artifacts.ROOT)  # what git holds of it is a promise, too
        run("dvc", "repro", folder=clone)
        found = read(clone)
    print(table(promised, found))
    sys.exit(judge(promised, found))


def run(*arguments: str, folder: Path = Path()) -> None:
    """Run a command with its output shown; raise UserError if it fails."""
    if subprocess.run(arguments, cwd=folder).returncode:
        raise UserError(f"`{' '.join(arguments)}` failed")


def read(clone: Path) -> Results:
    names = artifacts.evaluation("*"), artifacts.verification_int8("*")
    files = [file for name in names for file in sorted(clone.glob(str(name)))]
    return Results(lock.outputs(clone), {file.relative_to(clone): artifacts.read_json(file) for file in files})


def table(promised: Results, found: Results) -> str:
    """Lay out every output's digests, and the accuracies of the models that differ."""
    lines = ["| output | locked | reproduced | |", "|---|---|---|---|"]
    for output in promised.digests | found.digests:
        locked, reproduced = (results.digests.get(output, "nothing") for results in (promised, found))
        lines.append(f"| {output[1]} | {locked} | {reproduced} | {'equal' if reproduced == locked else 'DIFFERS'} |")
    differing = [file for file, measured in found.measured.items() if promised.measured.get(file, measured) != measured]
    if differing:
        lines += ["", "| accuracy | locked | its 95 % interval | reproduced | |", "|---|---|---|---|---|"]
    for file in differing:
        measured, accuracy = promised.measured[file], found.measured[file]["accuracy"]
        interval = f"{measured['accuracy_low']:.2%} to {measured['accuracy_high']:.2%}"
        verdict = "inside" if is_close(measured, found.measured[file]) else "OUTSIDE"
        lines.append(f"| {file} | {measured['accuracy']:.2%} | {interval} | {accuracy:.2%} | {verdict} |")
    return "\n".join(lines)


def judge(promised: Results, found: Results) -> int:
    """Return the exit status."""
    if found.digests == promised.digests:
        return EQUAL
    same_outputs = found.digests.keys() == promised.digests.keys()
    differing = found.digests.items() - promised.digests.items()
    only_models = all(depends_on_weights(*output) for output, _ in differing)
    all_close = all(is_close(measured, found.measured.get(file)) for file, measured in promised.measured.items())
    return CLOSE if same_outputs and only_models and all_close else FAILED


def depends_on_weights(stage: str, path: str) -> bool:
    """Say whether an output may differ on another type of processor."""
    return "@" in stage and Path(path).name not in UNTRAINED  # as DVC names the stages of a matrix


def is_close(promised: dict, found: dict | None) -> bool:
    return found is not None and promised["accuracy_low"] <= found["accuracy"] <= promised["accuracy_high"]


if __name__ == "__main__":
    command.run(main)
