"""Publish the committed models: verify them, sign them, push them to the DVC remote, and register a version.

Each step leaves out what is done already, so that an interrupted release goes on when it is run again. Nothing is
pushed to a git remote.
"""

import argparse
import json
from pathlib import Path

from dvc.repo import Repo
from gto.versions import SemVer

from checks import integrity, lock
from checks.process import capture, run
from stages import artifacts, command
from stages.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m checks.release", description=__doc__)
    parser.add_argument("version", metavar="VERSION", help="such as v1.2.0")
    parser.add_argument("--key", type=Path, metavar="FILE", help="private key to sign with")
    command.call(release, **vars(parser.parse_args()))


def release(version: str, key: Path | None) -> None:
    """Publish all models that dvc.yaml declares. Raises UserError before the first change if one must not be."""
    if not SemVer.is_valid(version):
        raise UserError(f"version: expected a semantic version such as v1.2.0, got {version!r}")
    if not Repo().config["core"].get("remote"):
        raise UserError("DVC remote: expected a default one, got none; `dvc remote add --default NAME URL` adds it")
    models = declared_models()
    tags = {model: f"{model}@{version}" for model in models}
    require_committed(models if key else [])
    registered = registered_tags([*tags.values()])
    verify_outputs(models)
    if key:
        sign(models, key, registered)
    elif signed := [model for model in models if artifacts.signature(model).exists()]:
        raise UserError(f"{artifacts.signature(signed[0])}: expected a key, or no signature, got a signature only")
    run("dvc", "push")
    for model, tag in tags.items():
        if tag not in registered:
            capture("gto", "register", model, "--version", version)
            print(f"registered {tag}")
    print(next_commands(models[0], version, list(tags.values()), key is not None))


def declared_models() -> list[str]:
    """Return the models in dvc.yaml, under artifacts. Raises UserError if the folder of one is not there."""
    declared = Repo().artifacts.read().get("dvc.yaml", {})
    models = {name: Path(artifact.path) for name, artifact in declared.items() if artifact.type == "model"}
    for name, path in models.items():
        if path != (folder := artifacts.signature(name).parent):
            raise UserError(f"dvc.yaml: artifacts.{name}.path: expected {folder}, got {path}")
        if not path.is_dir():
            raise UserError(f"dvc.yaml: artifacts.{name}: expected a model in {path}, got none")
    if not models:
        raise UserError("dvc.yaml: artifacts: expected a model, got none")
    return sorted(models)


def require_committed(signed: list[str]) -> None:
    """Raise UserError if anything is not committed but the signatures of these models."""
    status = capture("git", "status", "--porcelain", "--no-renames", "--untracked-files=all", "-z")
    signatures = {artifacts.signature(model) for model in signed}  # an interrupted release leaves them
    if changed := [entry[3:] for entry in status.split("\0") if entry and Path(entry[3:]) not in signatures]:
        raise UserError(f"workspace: expected everything committed, got changes of {', '.join(changed)}")


def registered_tags(tags: list[str]) -> set[str]:
    """Return those tags that the last commit has. Raises UserError if another commit has one."""
    existing = set(capture("git", "tag", "--list", *tags).split())
    here = existing.intersection(capture("git", "tag", "--points-at", "HEAD").split())
    if elsewhere := sorted(existing - here):
        raise UserError(f"{elsewhere[0]}: expected a new version, got one of another commit")
    return here


def verify_outputs(models: list[str]) -> None:
    """Raise UserError unless the outputs are whole, from the last commit's code and parameters, and all there is.

    Other files in a model's folder, which git may ignore, would be signed, but not published.
    """
    damaged, summary = integrity.find_damage()
    if damaged:
        raise UserError(f"{damaged[0]}: expected the recorded digest, got another; `make integrity` tells more")
    print(summary)
    if changed := json.loads(capture("dvc", "status", "--json")):
        raise UserError(f"{lock.FILE}: expected the outputs of this commit, got changes in {', '.join(changed)}")
    published = {Path(path) for _, path in lock.locked_digests()}
    for signature in map(artifacts.signature, models):
        files = {path for path in signature.parent.rglob("*") if path.is_file()}
        if others := sorted(files - published - {signature, artifacts.temporary_path(signature)}):
            raise UserError(f"{others[0]}: expected no file that the pipeline has not written")


def sign(models: list[str], key: Path, registered: set[str]) -> None:
    """Sign the models that this key has not signed yet, and commit the signatures."""
    from checks import signing  # needs packages that only a release with a key installs

    unsigned = signing.unsigned_models(models, key)
    if registered and unsigned:
        raise UserError(f"{min(registered)}: expected a new version, got one that this key has not signed")
    for model in unsigned:
        signing.sign(model, key)
        print(f"signed {model}")
    signatures = [str(artifacts.signature(model)) for model in models]
    capture("git", "add", "--", *signatures)
    if capture("git", "status", "--porcelain", "--", *signatures):
        capture("git", "commit", "--message", "Sign the models", "--", *signatures)


def next_commands(model: str, version: str, tags: list[str], is_signed: bool) -> str:
    """Return the commands that publish the tags, and those with which anyone fetches a model and verifies it."""
    remotes = capture("git", "remote").split()
    url = capture("git", "remote", "get-url", remotes[0]).strip() if remotes else str(Path.cwd())
    lines = ["", "fetch a model:", f"  dvc artifacts get {url} {model} --rev {version} --out {model}"]
    if is_signed:
        signature = Path(model) / artifacts.signature(model).name
        lines.append(f"  model_signing verify key {model} --public_key key.pub --signature {signature}")
    if remotes:
        lines = [
            "",
            "publish the commit and its tags:",
            f"  git push --atomic {remotes[0]} HEAD {' '.join(tags)}",
            *lines,
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
