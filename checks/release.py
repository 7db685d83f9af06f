"""Publish the committed models: verify them, sign them, push them to the DVC remote, and register a version.

Each step leaves out what is done already, so that an interrupted release goes on when it is run again. Nothing is
pushed to a git remote.
"""

import argparse
import json
import shlex
from pathlib import Path
from urllib.parse import urlsplit

from dvc.config_schema import RelPath
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
    check_key(models, key)
    require_committed(models if key else [])
    registered = registered_tags([*tags.values()])
    verify_outputs(models)
    if key:
        sign(models, key, registered)
    require_one_version(tags)
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
        if path != (folder := artifacts.model_folder(name)):
            raise UserError(f"dvc.yaml: artifacts.{name}.path: expected {folder}, got {path}")
        if not path.is_dir():
            raise UserError(f"dvc.yaml: artifacts.{name}: expected a model in {path}, got none")
    if not models:
        raise UserError("dvc.yaml: artifacts: expected a model, got none")
    return sorted(models)


def check_key(models: list[str], key: Path | None) -> None:
    """Raise UserError if the key could be published with the project, or if there is none for signed models."""
    if key and key.resolve().is_relative_to(Path.cwd()):
        raise UserError(f"{key}: expected a key outside of the project, so that nobody commits it")
    if not key and (signed := [model for model in models if artifacts.signature(model).exists()]):
        raise UserError(f"{artifacts.signature(signed[0])}: expected a key to sign with again, or no signature")


def require_committed(signed: list[str]) -> None:
    """Raise UserError if anything is not committed but the signatures of these models."""
    status = capture("git", "status", "--porcelain", "--no-renames", "--untracked-files=all", "-z")
    signatures = {artifacts.signature(model) for model in signed}  # an interrupted release leaves them
    if changed := [entry[3:] for entry in status.split("\0") if entry and Path(entry[3:]) not in signatures]:
        raise UserError(f"workspace: expected everything committed, got changes of {', '.join(changed)}")


def registered_tags(tags: list[str]) -> set[str]:
    """Return those tags that GTO has given to the last commit. Raises UserError if there is one that it has not."""
    columns = "%(refname:short) %(*objectname)"  # the second is empty for a tag without a message, which GTO ignores
    commits = dict(line.split(" ") for line in capture("git", "tag", "--list", "--format", columns, *tags).splitlines())
    head = capture("git", "rev-parse", "HEAD").strip()
    if others := sorted(tag for tag, commit in commits.items() if commit != head):
        found = "one of another commit" if commits[others[0]] else "a tag that GTO has not made"
        raise UserError(f"{others[0]}: expected a new version, got {found}")
    return set(commits)


def require_one_version(tags: dict[str, str]) -> None:
    """Raise UserError if the last commit has other versions of the models, to which GTO would add none."""
    for tag in capture("git", "tag", "--points-at", "HEAD").split():
        model = tag.partition("@")[0]
        if SemVer.is_valid(tag.rpartition("@")[2]) and model in tags and tag != tags[model]:
            raise UserError(f"{tags[model]}: expected the first version of a commit, got one that is {tag} already")


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
    pushed = {Path(out.fs_path).relative_to(Path.cwd()) for out in Repo().index.outs if out.use_cache}
    published = pushed.union(map(Path, capture("git", "ls-files", "-z").split("\0")))
    for model in models:
        folder, signature = artifacts.model_folder(model), artifacts.signature(model)
        files = {path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
        if others := sorted(files - published - {signature, artifacts.temporary_path(signature)}):
            raise UserError(f"{others[0]}: expected only files that DVC or git publishes, got another")


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
    run("git", "add", "--", *signatures)
    if capture("git", "status", "--porcelain", "--", *signatures):
        run("git", "commit", "--quiet", "--message", "Sign the models", "--", *signatures)


def next_commands(model: str, version: str, tags: list[str], is_signed: bool) -> str:
    """Return the commands that publish the tags, and those with which anyone fetches a model and verifies it."""
    remotes = capture("git", "remote").split()
    remote = "origin" if "origin" in remotes else next(iter(remotes), "")
    in_place = is_relative_remote()
    url = public_url(remote) if remote and not in_place else str(Path.cwd())
    lines = []
    if remote:
        branch = capture("git", "branch", "--show-current").split()  # none if the HEAD is detached
        lines += ["", "publish the tags:", shlex.join(["git", "push", "--atomic", remote, *branch, *tags])]
    lines += ["", "fetch a model, with the package dvc:"]
    if in_place:
        lines.append("# from this folder only: the path of the DVC remote is relative to it")
    lines.append(shlex.join(["dvc", "artifacts", "get", url, model, "--rev", version, "--out", model]))
    if is_signed:
        signature = f"{model}/{artifacts.signature(model).name}"
        verify = ["model_signing", "verify", "key", model, "--public_key", "key.pub", "--signature", signature]
        lines += ["", "verify it, with the packages model-signing and pyopenssl:", shlex.join(verify)]
    return "\n".join(lines)


def public_url(remote: str) -> str:
    """Return the URL of a git remote, without a user or a password."""
    url = urlsplit(capture("git", "remote", "get-url", remote).strip())
    if url.scheme in ("http", "https"):
        url = url._replace(netloc=url.netloc.rpartition("@")[2])
    return url.geturl()


def is_relative_remote() -> bool:
    """Return whether the default DVC remote is a folder with a path relative to the project."""
    config = Repo().config
    return isinstance(config["remote"][config["core"]["remote"]].get("url"), RelPath)


if __name__ == "__main__":
    main()
