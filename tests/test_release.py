"""Releases: to a remote in a folder and in S3, interrupted ones, and what must not be published."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from checks import release
from stages import artifacts
from stages.errors import UserError
from tests.conftest import BUCKET, call, commit, create_keys, edit_params, environment, model_signing, run, wait_until
from tests.test_integrity import flip_a_bit
from tests.test_remotes import add_default_remote, export_another_version, read_files

MODELS = ["cnn", "cnn_int8", "fnn", "fnn_int8"]
VERSION = "v1.2.0"


@pytest.fixture
def project(clone, tmp_path, monkeypatch) -> Path:
    """The current folder: a reproduced clone with a DVC remote, committed."""
    monkeypatch.chdir(clone)
    call(clone, "git", "config", "user.name", "t")
    call(clone, "git", "config", "user.email", "t@t")
    add_default_remote(clone, "storage", url=str(tmp_path / "storage"))
    commit(clone)
    return clone


def make_release(folder: Path, *options: str) -> subprocess.CompletedProcess:
    return run(folder, sys.executable, "-m", "checks.release", *options)


def refusal(version: str, key: Path | None = None) -> str:
    """Return the line with which a release of the current folder is refused, before it has changed anything."""
    before = call(Path(), "git", "rev-parse", "HEAD"), call(Path(), "git", "status", "--porcelain")
    with pytest.raises(UserError) as refused:
        release.release(version, key)
    assert (call(Path(), "git", "rev-parse", "HEAD"), call(Path(), "git", "status", "--porcelain")) == before
    assert not list(artifacts.MODEL_REPOSITORY.glob("*/model.sig"))
    return str(refused.value)


def require_released(folder: Path, elsewhere: Path, public_key: Path) -> None:
    """Fetch every model of the version into another folder, and verify its signature with the official command."""
    assert call(folder, "git", "status", "--porcelain") == ""
    assert sorted(call(folder, "git", "tag", "--points-at", "HEAD").split()) == [f"{name}@{VERSION}" for name in MODELS]
    shutil.rmtree(folder / ".dvc" / "cache")
    elsewhere.mkdir()
    for name in MODELS:
        call(elsewhere, "dvc", "artifacts", "get", str(folder), name, "--rev", VERSION, "--out", name)
        assert read_files(elsewhere / name) == read_files(folder / artifacts.model_folder(name))
        verified = model_signing("verify", elsewhere / name, "--public_key", str(public_key))
        assert verified.returncode == 0, verified.stderr


@pytest.mark.parametrize("kind", ["folder", pytest.param("s3", marks=pytest.mark.slow)])
def test_a_released_version_is_fetched_and_verified_elsewhere(project, tmp_path, request, keys, kind):
    if kind == "s3":
        endpoint = request.getfixturevalue("s3_endpoint")
        add_default_remote(project, "storage", url=f"s3://{BUCKET}/release", endpointurl=endpoint)
        commit(project)
    ended = make_release(project, VERSION, "--key", str(keys[0]))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-5:] == [
        "fetch a model, with the package dvc:",
        f"dvc artifacts get {project} cnn --rev {VERSION} --out cnn",
        "",
        "verify it, with the packages model-signing and pyopenssl:",
        "model_signing verify key cnn --public_key key.pub --signature cnn/model.sig",
    ]
    head = call(project, "git", "rev-parse", "HEAD")
    again = make_release(project, VERSION, "--key", str(keys[0]))
    assert again.returncode == 0, again.stderr
    assert call(project, "git", "rev-parse", "HEAD") == head
    require_released(project, tmp_path / "elsewhere", keys[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "is_reached",
    [
        lambda project: list((project / artifacts.MODEL_REPOSITORY).glob("*/model.sig")),
        lambda project: len(list((project.parent / "storage").rglob("*"))) > 8,
        lambda project: len(list((project / ".git" / "refs" / "tags").iterdir())) >= 2,
    ],
    ids=["signing", "push", "registration"],
)
def test_a_killed_release_goes_on(project, tmp_path, keys, is_reached: Callable[[Path], bool]):
    command = [sys.executable, "-m", "checks.release", VERSION, "--key", str(keys[0])]
    process = subprocess.Popen(
        command, cwd=project, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: is_reached(project))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    ended = make_release(project, VERSION, "--key", str(keys[0]))
    assert ended.returncode == 0, ended.stderr
    require_released(project, tmp_path / "elsewhere", keys[1])


def test_a_release_that_was_killed_between_two_signatures_goes_on(project, tmp_path, keys):
    folder = project / artifacts.model_folder("cnn")
    assert model_signing("sign", folder, "--private_key", str(keys[0])).returncode == 0
    partial = artifacts.temporary_path(project / artifacts.signature("fnn"))
    partial.write_text("{")
    ended = make_release(project, VERSION, "--key", str(keys[0]))
    assert ended.returncode == 0, ended.stderr
    assert "signed fnn\n" in ended.stdout and "signed cnn\n" not in ended.stdout
    assert not partial.exists()
    assert call(project, "git", "status", "--porcelain") == ""


@pytest.mark.slow
def test_a_release_without_a_key_is_not_signed(project):
    call(project, "git", "branch", "--move", "main")
    call(project, "git", "remote", "add", "backup", "../backup")
    call(project, "git", "remote", "add", "origin", "https://me:secret@example.com/project.git")
    ended = make_release(project, VERSION)
    assert ended.returncode == 0, ended.stderr
    tags = " ".join(f"{name}@{VERSION}" for name in MODELS)
    assert ended.stdout.splitlines()[-5:] == [
        "publish the tags:",
        f"git push --atomic origin main {tags}",
        "",
        "fetch a model, with the package dvc:",
        f"dvc artifacts get https://example.com/project.git cnn --rev {VERSION} --out cnn",
    ]
    assert not list((project / artifacts.MODEL_REPOSITORY).glob("*/model.sig"))
    export_another_version(project, "cnn")
    commit(project)
    assert refusal(VERSION) == f"cnn@{VERSION}: expected a new version, got one of another commit"


def test_a_commit_that_has_another_version_or_a_tag_that_gto_ignores_is_refused(project):
    call(project, "gto", "register", "fnn", "--version", "v1.1.0")
    message = f"fnn@{VERSION}: expected the first version of a commit, got one that is fnn@v1.1.0 already"
    assert refusal(VERSION) == message
    call(project, "git", "tag", f"cnn@{VERSION}")
    assert refusal(VERSION) == f"cnn@{VERSION}: expected a new version, got a tag that GTO has not made"


def test_a_remote_with_a_relative_path_is_pointed_out(project):
    call(project, "dvc", "remote", "modify", "storage", "url", "../storage")
    call(project, "git", "remote", "add", "origin", "https://example.com/project.git")
    commit(project)
    ended = make_release(project, VERSION)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-2:] == [
        "# from this folder only: the path of the DVC remote is relative to it",
        f"dvc artifacts get {project} cnn --rev {VERSION} --out cnn",
    ]


def test_a_version_that_is_not_semantic_is_refused(project):
    for version in ("", "1.2.0", "v1.2", "latest"):
        assert refusal(version) == f"version: expected a semantic version such as v1.2.0, got {version!r}"


def test_a_project_without_a_remote_is_refused(clone, monkeypatch):
    monkeypatch.chdir(clone)
    assert refusal(VERSION).startswith("DVC remote: expected a default one, got none; `dvc remote add")


def test_uncommitted_files_are_refused(project):
    (project / "notes.txt").write_text("")
    (project / "README.md").write_text("")
    message = "workspace: expected everything committed, got changes of README.md, notes.txt"
    assert refusal(VERSION) == message


def test_a_damaged_output_is_refused(project):
    flip_a_bit(project / artifacts.onnx("cnn"))
    message = f"{artifacts.onnx('cnn')}: expected the recorded digest, got another; `make integrity` tells more"
    assert refusal(VERSION) == message


def test_outputs_that_are_missing_or_were_not_made_from_this_commit_are_refused(project):
    (project / artifacts.weights("cnn")).unlink()
    edit_params(project / "params.yaml", {"tolerance": 2e-5})
    commit(project)
    message = "dvc.lock: expected the outputs of this commit, got changes in "
    refused = refusal(VERSION)
    assert refused.startswith(message)
    assert set(refused.removeprefix(message).split(", ")) >= {"train@cnn", "verify@fnn", "verify@cnn"}


def test_a_file_that_would_be_signed_but_not_published_is_refused(project):
    file = artifacts.onnx("cnn").with_name("notes.txt")  # in a folder that git ignores
    file.symlink_to("nothing")
    message = "expected only files that DVC or git publishes, got another"
    assert refusal(VERSION) == f"{file}: {message}"
    file.unlink()
    call(project, "git", "rm", "--quiet", "--cached", str(artifacts.bom("cnn")))
    call(project, "git", "commit", "--quiet", "--message", "x")
    (project / ".git" / "info" / "exclude").write_text("bom.cdx.json\n")
    assert refusal(VERSION) == f"{artifacts.bom('cnn')}: {message}"


def test_a_declared_model_that_is_not_there_is_refused(project):
    shutil.rmtree(project / artifacts.model_folder("cnn_int8"))
    message = "dvc.yaml: artifacts.cnn_int8: expected a model in artifacts/model_repository/cnn_int8, got none"
    assert refusal(VERSION) == message


def test_a_key_inside_the_project_is_refused(project):
    key = Path("key.pem")
    message = "key.pem: expected a key outside of the project, so that nobody commits it"
    assert refusal(VERSION, key) == message


def test_a_key_that_cannot_sign_is_refused(project, tmp_path):
    key = tmp_path / "key.pem"
    with pytest.raises(FileNotFoundError):
        release.release(VERSION, key)
    subprocess.run(["openssl", "genrsa", "-out", str(key)], check=True, capture_output=True)
    expected = "an unencrypted private key in PEM, of the curve P-256, P-384 or P-521"
    assert refusal(VERSION, key).startswith(f"{key}: expected {expected}, got: ")


@pytest.mark.slow
def test_a_signature_is_replaced_only_with_a_key_and_in_a_new_version(project, keys, tmp_path):
    assert make_release(project, VERSION, "--key", str(keys[0])).returncode == 0
    unsigned = make_release(project, "v1.3.0")
    assert unsigned.returncode == 1
    assert unsigned.stderr.endswith("cnn/model.sig: expected a key to sign with again, or no signature\n")
    other, other_public = create_keys(tmp_path, "other")
    resigned = make_release(project, VERSION, "--key", str(other))
    assert resigned.returncode == 1
    assert resigned.stderr == f"release: cnn@{VERSION}: expected a new version, got one that this key has not signed\n"
    assert make_release(project, "v1.3.0", "--key", str(other)).returncode == 0
    folder = project / artifacts.model_folder("cnn")
    assert model_signing("verify", folder, "--public_key", str(other_public)).returncode == 0
