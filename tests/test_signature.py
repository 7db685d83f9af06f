"""Signed models, with OpenSSF's own command to sign and verify them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from checks.signing import create_signer
from serving.errors import StartError
from serving.signature import FILE, SignedFiles, signed_reader
from stages import artifacts
from tests.conftest import create_keys, model_signing, not_serving, serving
from tests.test_integrity import flip_a_bit


@pytest.fixture
def repository(tmp_path, models_folder, keys) -> Path:
    """A model repository with two models, of which cnn is signed."""
    for name in ("cnn", "fnn"):
        shutil.copytree(models_folder / artifacts.MODEL_REPOSITORY / name, tmp_path / "repository" / name)
    (tmp_path / "repository" / "cnn" / "README.md").write_text("The model card")
    ended = model_signing("sign", tmp_path / "repository" / "cnn", "--private_key", str(keys[0]))
    assert ended.returncode == 0, ended.stderr
    return tmp_path / "repository"


def test_the_official_command_and_the_server_accept_a_signed_model(repository, keys, monkeypatch):
    assert model_signing("verify", repository / "cnn", "--public_key", str(keys[1])).returncode == 0
    signed_reader(repository / "cnn", keys[1])
    monkeypatch.chdir(repository)
    signed_reader(Path("cnn"), keys[1])


def test_a_file_that_changes_after_the_signature_was_verified_is_not_read(repository, keys):
    file = repository / "cnn" / "1" / "model.onnx"
    read_file = signed_reader(repository / "cnn", keys[1])
    assert read_file(file) == file.read_bytes()
    flip_a_bit(file)
    with pytest.raises(StartError, match="model.onnx: expected the content that was signed, got another"):
        read_file(file)


def test_a_model_of_symbolic_links_verifies_as_one_of_files(repository, keys, tmp_path):
    linked = tmp_path / "linked"
    shutil.copytree(repository / "cnn", linked)
    (linked / FILE).unlink()
    file = linked / "1" / "model.onnx"  # as DVC links it to its cache
    file.unlink()
    file.symlink_to(repository / "cnn" / "1" / "model.onnx")
    create_signer(keys[0]).set_hashing_config(SignedFiles()).sign(linked, linked / FILE)
    shutil.copy(linked / FILE, repository / "cnn")
    assert model_signing("verify", repository / "cnn", "--public_key", str(keys[1])).returncode == 0
    assert signed_reader(linked, keys[1])(file) == file.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: flip_a_bit(folder / "1" / "model.onnx"),
        lambda folder: flip_a_bit(folder / "README.md"),
        lambda folder: (folder / "2").mkdir() or (folder / "2" / "model.onnx").write_bytes(b""),
        lambda folder: (folder / "labels.txt").unlink(),
        lambda folder: flip_a_bit(folder / FILE),
        lambda folder: (folder / FILE).unlink(),
    ],
    ids=["model", "card", "added version", "removed file", "signature", "no signature"],
)
def test_any_change_of_a_signed_model_is_found(repository, keys, change: Callable[[Path], object]):
    change(repository / "cnn")
    with pytest.raises(StartError, match=f"cnn/{FILE}: expected a valid signature by .*/key.pub, got: "):
        signed_reader(repository / "cnn", keys[1])


def test_the_signature_of_another_key_is_not_accepted(repository, tmp_path):
    _, other = create_keys(tmp_path, "other")
    with pytest.raises(StartError, match="expected a valid signature by .*/other.pub"):
        signed_reader(repository / "cnn", other)


def test_only_models_that_the_key_has_signed_are_served(repository, keys):
    with serving(repository, "--public-key", str(keys[1])) as running:
        _, index = running.json("/v2/repository/index", b"{}")
        states = {entry["name"]: (entry["state"], entry.get("reason", "")) for entry in index}
        assert states["cnn"] == ("READY", "")
        assert states["fnn"][0] == "UNAVAILABLE"
        assert f"fnn/{FILE}: expected a valid signature" in states["fnn"][1]
        assert running.ask("/v2/models/fnn")[0] == 404


def test_a_public_key_that_cannot_be_used_is_one_line(repository, keys):
    ended = not_serving(repository, "--public-key", "nothing.pub")
    assert ended.returncode == 1
    assert ended.stderr == "serving: nothing.pub: expected a readable file, got: No such file or directory\n"
    ended = not_serving(repository, "--public-key", str(keys[0]))
    assert ended.returncode == 1
    expected = "expected a public key in PEM, of the curve P-256, P-384 or P-521"
    assert ended.stderr.startswith(f"serving: {keys[0]}: {expected}, got: ")
