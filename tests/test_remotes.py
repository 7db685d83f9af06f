"""DVC remotes and the model registry: a folder, an S3 server on the loopback interface, and versions by git tags."""

import shutil
import sys
from pathlib import Path

import boto3
import pytest
from ruamel.yaml import YAML

from stages import artifacts
from tests.conftest import BUCKET, call, commit, edit_params, repro


def add_remote(folder: Path, name: str, url: str, **options: str) -> None:
    call(folder, "dvc", "remote", "add", name, url)
    for option, value in options.items():
        call(folder, "dvc", "remote", "modify", name, option, value)


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_fresh_clone_pulls_what_was_pushed_and_runs_no_stage(clone, tmp_path, request, kind):
    if kind == "folder":
        add_remote(clone, "storage", str(tmp_path / "storage"))
    else:
        add_remote(clone, "storage", f"s3://{BUCKET}/mnist", endpointurl=request.getfixturevalue("s3_endpoint"))
    call(clone, "dvc", "remote", "default", "storage")
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
    for version, license in {"v1": "MIT", "v2": "CC0-1.0"}.items():
        edit_params(clone / "params.yaml", {"license": license})
        repro(clone, "--single-item", "export@fnn")
        commit(clone)
        add_remote(clone, version, f"s3://{BUCKET}/mnist/{version}", endpointurl=s3_endpoint, version_aware="true")
        call(clone, "dvc", "push", "--remote", version, "export@fnn")
        call(clone, "git", "restore", "dvc.lock")
        for path in (clone / artifacts.MODEL_REPOSITORY).glob("fnn/**/*"):
            if path.is_file() and path.name != "README.md":
                published[f"mnist/{version}/{path.relative_to(clone).as_posix()}"] = path.read_bytes()

    assert len(published) == 2 * 4  # versions, files
    for key, content in published.items():
        assert s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() == content


def test_a_registered_version_is_downloaded_by_its_tag_and_runs_without_the_project(clone, tmp_path):
    add_remote(clone, "storage", str(tmp_path / "storage"))
    call(clone, "dvc", "remote", "default", "storage")
    call(clone, "dvc", "push")
    commit(clone)
    call(clone, "gto", "register", "cnn", "--version", "v1.0.0")
    call(clone, "gto", "assign", "cnn", "--version", "v1.0.0", "--stage", "production")
    assert "v1.0.0" in call(clone, "gto", "show", "cnn")
    first = (clone / artifacts.onnx("cnn")).read_bytes()
    edit_params(clone / "params.yaml", {"license": "CC0-1.0"})
    repro(clone, "--single-item", "export@cnn")
    commit(clone)
    assert (clone / artifacts.onnx("cnn")).read_bytes() != first
    shutil.rmtree(clone / ".dvc" / "cache")

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for option, value, file in (("--rev", "v1.0.0", "cnn.onnx"), ("--stage", "production", "production.onnx")):
        call(elsewhere, "dvc", "artifacts", "get", str(clone), "cnn", option, value, "--out", file)
        assert (elsewhere / file).read_bytes() == first
    script = (
        "import sys, numpy, onnxruntime\n"
        "session = onnxruntime.InferenceSession('cnn.onnx')\n"
        "print(session.run(['label'], {'image': numpy.zeros((3, 1, 28, 28), numpy.uint8)})[0].shape)\n"
        "assert not {'torch', 'dvc', 'stages'} & sys.modules.keys()"
    )
    assert call(elsewhere, sys.executable, "-c", script) == "(3,)\n"


def test_every_default_model_is_declared_for_the_registry(built):
    declared = YAML(typ="safe").load(built / "dvc.yaml")["artifacts"]
    assert {folder.name for folder in (built / artifacts.MODEL_REPOSITORY).iterdir()} == declared.keys()
    for name, artifact in declared.items():
        assert artifact["path"] == artifacts.onnx(name).as_posix()
        assert artifact["type"] == "model"
        assert artifact["desc"]
