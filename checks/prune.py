"""Prepare dvc.lock and the workspace, after `git restore`, for `dvc repro`.

DVC forgets a model that is taken out of `models`, but leaves its files in the workspace, where a server would serve
them, and its stages in dvc.lock. The removed files stay in DVC's cache.

After another machine's commit, whose outputs have other bytes and are not in the cache, DVC would run the stages again,
because it consults its run cache only for stages that are not in dvc.lock.
"""

from pathlib import Path

from dvc.repo import Repo
from ruamel.yaml import YAML

from checks import lock
from stages import artifacts, command, params


def main() -> None:
    """Remove models that are not in `models`, and drop locked stages of these and without outputs in the cache."""
    stale = stale_models(params.load_params().models)
    for model in stale:
        int8 = artifacts.int8_name(model)
        for folder in (artifacts.ROOT / model, artifacts.model_folder(model), artifacts.model_folder(int8)):
            if folder.exists():
                artifacts.remove(folder)
                print(f"{folder}: removed, as {model} is not in models")
    locked = locked_stages()
    if uncached := locked & uncached_stages():
        print(f"{lock.FILE}: dropped {', '.join(sorted(uncached))}, whose outputs are not in DVC's cache")
    if dropped := uncached | {stage for stage in locked if stage.partition("@")[2] in stale}:
        unlock(dropped)


def stale_models(models: list[str]) -> list[str]:
    """Return the models that have a training in artifacts/ or in dvc.lock, but are not in `models`."""
    # Folders that no training created are not touched.
    patterns = (artifacts.weights("*"), artifacts.training("*"), artifacts.training_lock("*"))
    folders = {file.parent.name for pattern in patterns for file in Path().glob(str(pattern))}
    trained = {stage.removeprefix("train@") for stage in locked_stages() if stage.startswith("train@")}
    return sorted((folders | trained) - {*models, *params.RESERVED_NAMES})


def locked_stages() -> set[str]:
    """Return the stages in dvc.lock, none if there is no such file."""
    return {stage for stage, _ in lock.locked_digests()} if lock.FILE.exists() else set()


def uncached_stages() -> set[str]:
    """Return the stages with an output whose locked digest is not in DVC's cache."""
    return {
        stage
        for stage, changes in Repo().status().items()
        for change in changes
        if isinstance(change, dict) and "not in cache" in change.get("changed outs", {}).values()
    }


def unlock(stages: set[str]) -> None:
    """Remove stages from dvc.lock."""
    yaml = YAML()
    content = yaml.load(lock.FILE)
    for stage in stages:
        del content["stages"][stage]
    with artifacts.atomic_write(lock.FILE) as path:
        yaml.dump(content, path)


if __name__ == "__main__":
    command.run(main)
