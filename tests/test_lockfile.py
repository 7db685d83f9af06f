"""The reader of dvc.lock."""

from pathlib import Path

import pytest

from serving import lockfile
from tests.conftest import PROJECT

LOCK = """\
schema: '2.0'
stages:
  download:
    outs:
    - {path: artifacts/data, hash: md5, md5: 00000000000000000000000000000001.dir}
  export@cnn:
    outs:
    - {path: model.onnx, md5: '00000000000000000000000000000002'}
    - {path: remote}
  check:
    cmd: 'true'
"""
INVALID = {
    "": "expected a mapping at the top level, got nothing",
    "text": "expected a mapping at the top level, got a string",
    "<<<<<<< HEAD\nschema: '2.0'\n": "expected YAML, got: ",
    "schema: '2.0'": "expected a mapping at stages, got nothing",
    "stages: {a: null}": "expected a mapping at stages.a, got nothing",
    "stages: {a: {outs: {path: b}}}": "expected a sequence at stages.a.outs, got a mapping",
    "stages: {a: {outs: [b]}}": "expected a mapping at stages.a.outs, got a string",
    "stages: {a: {outs: [{md5: b}]}}": "expected a string at stages.a.outs.path, got nothing",
    "stages: {a: {outs: [{path: b, md5: 12}]}}": "expected a string at stages.a.outs.md5, got a scalar",
    "a: [": "expected YAML, got: ",
    "a: \0": "expected YAML, got: ",
}


def test_outputs_are_read_by_stage_and_path(tmp_path):
    (tmp_path / "dvc.lock").write_text(LOCK)
    assert lockfile.read_outputs(tmp_path / "dvc.lock") == {
        ("download", "artifacts/data"): "00000000000000000000000000000001.dir",
        ("export@cnn", "model.onnx"): "00000000000000000000000000000002",
        ("export@cnn", "remote"): None,
    }


def test_the_project_lock_has_a_digest_for_every_output():
    outputs = lockfile.read_outputs(PROJECT / "dvc.lock")
    assert outputs and None not in outputs.values()


@pytest.mark.parametrize("content", INVALID)
def test_an_invalid_lock_file_gives_a_one_line_error(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    Path("dvc.lock").write_text(content)
    with pytest.raises(ValueError) as raised:
        lockfile.read_outputs(Path("dvc.lock"))
    assert str(raised.value).startswith(f"dvc.lock: {INVALID[content]}")
    assert "\n" not in str(raised.value)


def test_bytes_that_are_not_utf8_give_a_one_line_error(tmp_path):
    (tmp_path / "dvc.lock").write_bytes(b"a: \xff")
    with pytest.raises(ValueError, match="dvc.lock: expected YAML, got: 'utf-8' codec"):
        lockfile.read_outputs(tmp_path / "dvc.lock")


def test_a_missing_lock_file_gives_a_one_line_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as raised:
        lockfile.read_outputs(Path("dvc.lock"))
    assert str(raised.value) == "dvc.lock: expected a file written by `dvc repro`, got: No such file or directory"
