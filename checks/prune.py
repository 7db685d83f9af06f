"""Remove what earlier runs built for models that params.yaml no longer builds.

DVC forgets a model that is taken out of `models`, but leaves its files in the workspace, where a server would serve
them, and its stages in dvc.lock. The removed files stay in DVC's cache.
"""

from pathlib import Path

from ruamel.yaml import YAML

from checks import lock
from stages import artifacts, command, params


def main() -> None:
    """Remove the directories and the locked stages of models that are not in params.yaml's `models`."""
    stale = stale_models(params.load_params().models)
    for model in stale:
        int8 = artifacts.int8_name(model)
        for folder in (artifacts.ROOT / model, artifacts.onnx(model).parents[1], artifacts.onnx(int8).parents[1]):
            if folder.exists():
                artifacts.remove(folder)
                print(f"{folder}: removed, as {model} is not in models")
    if stale and lock.FILE.exists():
        unlock(stale)


def stale_models(models: list[str]) -> list[str]:
    """Return the models that have a training in artifacts/ or stages in dvc.lock, but are not in `models`."""
    # Folders that no training created are not touched.
    patterns = (artifacts.weights("*"), artifacts.training("*"), artifacts.training_lock("*"))
    folders = {file.parent.name for pattern in patterns for file in Path().glob(str(pattern))}
    locked = {stage.partition("@")[2] for stage, _ in lock.locked_digests()} if lock.FILE.exists() else set()
    return sorted((folders | locked) - {*models, *params.RESERVED_NAMES, ""})


def unlock(models: list[str]) -> None:
    """Remove the stages of these models from dvc.lock."""
    yaml = YAML()
    content = yaml.load(lock.FILE)
    for stage in [stage for stage in content["stages"] if stage.partition("@")[2] in models]:
        del content["stages"][stage]
    with artifacts.atomic_write(lock.FILE) as path:
        yaml.dump(content, path)


if __name__ == "__main__":
    command.run(main)
