"""DVC remotes and the model registry: a folder, an S3 server on the loopback interface, and versions by git tags."""

import configparser
import shutil
import sys
from pathlib import Path

import boto3
import onnx
import pytest
from ruamel.yaml import YAML

from stages import artifacts
from tests.conftest import BUCKET, call, commit, model_signing, repro


def add_default_remote(folder: Path, name: str, **options: str) -> None:
    """Add a remote as `dvc remote add --default` and `dvc remote modify` do, but in no time."""
    file = folder / ".dvc" / "config"
    config = configparser.ConfigParser()
    config.read(file)
    config["core"]["remote"] = name
    config[f"'remote \"{name}\"'"] = options
    with file.open("w") as opened:
        config.write(opened)


def export_another_version(folder: Path, model: str) -> None:
    """Change a model's ONNX file, as another export would."""
    file = folder / artifacts.onnx(model)
    proto = onnx.load(file)
    proto.producer_version = "another"
    file.unlink()  # DVC's cache may share it
    onnx.save(proto, file)
    call(folder, "dvc", "commit", "--force", f"export@{model}")


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_fresh_clone_pulls_what_was_pushed_and_runs_no_stage(clone, tmp_path, request, kind):
    if kind == "folder":
        add_default_remote(clone, "storage", url=str(tmp_path / "storage"))
    else:
        endpoint = request.getfixturevalue("s3_endpoint")
        add_default_remote(clone, "storage", url=f"s3://{BUCKET}/mnist", endpointurl=endpoint)
    call(clone, "dvc", "push")
    commit(clone)

    fresh = tmp_path / "fresh"
    call(tmp_path, "git", "clone", "--quiet", str(clone), str(fresh))
    call(fresh, "dvc", "pull")
    assert call(fresh, "dvc", "status") == "Data and pipelines are up to date.\n"
    assert repro(fresh) == set()
    for path in (artifacts.weights("fnn"), artifacts.onnx("cnn_int8"), artifacts.DATA / artifacts.TRAIN_IMAGES):
        assert (fresh / path).read_bytes() == (clone / path).read_bytes()


def test_a_version_aware_remote_keeps_each_version_in_tritons_layout(clone, s3_endpoint):
    s3 = boto3.client("s3", endpoint_url=s3_endpoint)
    published = {}
    for version in ("v1", "v2"):
        url = f"s3://{BUCKET}/mnist/{version}"
        add_default_remote(clone, version, url=url, endpointurl=s3_endpoint, version_aware="true")
        call(clone, "dvc", "push", "export@fnn")
        call(clone, "git", "restore", "dvc.lock")
        for path in (clone / artifacts.MODEL_REPOSITORY).glob("fnn/**/*"):
            if path.is_file() and path not in (clone / artifacts.model_card("fnn"), clone / artifacts.bom("fnn")):
                published[f"mnist/{version}/{path.relative_to(clone).as_posix()}"] = path.read_bytes()
        export_another_version(clone, "fnn")
        commit(clone)

    assert len(published) == 2 * 4  # versions, files
    for key, content in published.items():
        assert s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() == content


def read_files(folder: Path) -> dict[Path, bytes]:
    """Return the content of each file in a folder."""
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_registered_version_is_downloaded_by_its_tag_and_runs_without_the_project(clone, tmp_path, keys):
    add_default_remote(clone, "storage", url=str(tmp_path / "storage"))
    call(clone, "dvc", "push")
    private_key, public_key = keys
    folder = artifacts.model_folder("cnn")
    assert model_signing("sign", clone / folder, "--private_key", str(private_key)).returncode == 0
    commit(clone)
    call(clone, "gto", "register", "cnn", "--version", "v1.0.0")
    call(clone, "gto", "assign", "cnn", "--version", "v1.0.0", "--stage", "production")
    assert "v1.0.0" in call(clone, "gto", "show", "cnn")
    first = read_files(clone / folder)
    export_another_version(clone, "cnn")
    commit(clone)
    assert read_files(clone / folder) != first
    shutil.rmtree(clone / ".dvc" / "cache")

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for option, value, name in (("--rev", "v1.0.0", "cnn"), ("--stage", "production", "production")):
        call(elsewhere, "dvc", "artifacts", "get", str(clone), "cnn", option, value, "--out", name)
        assert read_files(elsewhere / name) == first
        assert model_signing("verify", elsewhere / name, "--public_key", str(public_key)).returncode == 0
    script = (
        "import sys, numpy, onnxruntime\n"
        "session = onnxruntime.InferenceSession('cnn/1/model.onnx')\n"
        "print(session.run(['label'], {'image': numpy.zeros((3, 1, 28, 28), numpy.uint8)})[0].shape)\n"
        "assert not {'torch', 'dvc', 'stages'} & sys.modules.keys()"
    )
    assert call(elsewhere, sys.executable, "-c", script) == "(3,)\n"


def test_every_default_model_is_declared_for_the_registry(built):
    declared = YAML(typ="safe").load(built / "dvc.yaml")["artifacts"]
    assert {folder.name for folder in (built / artifacts.MODEL_REPOSITORY).iterdir()} == declared.keys()
    for name, artifact in declared.items():
        assert artifact["path"] == artifacts.model_folder(name).as_posix()
        assert artifact["type"] == "model"
        assert artifact["desc"]
