"""The model repository of a running server: start, model control modes, locks, and changes under load."""

import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from serving.models import model_names
from serving.repository import fingerprint
from stages import artifacts
from tests.conftest import Server, not_serving, serving, wait_until
from tests.foreign_models import save_model
from tests.test_serving import binary_request, infer

POLL = ("--model-control-mode", "poll", "--repository-poll-secs", "1")
EXPLICIT = ("--model-control-mode", "explicit")


@pytest.fixture
def repository(models_folder, tmp_path) -> Path:
    return shutil.copytree(models_folder / artifacts.MODEL_REPOSITORY, tmp_path / "model_repository")


def index(server: Server) -> dict[str, dict]:
    """Return the repository index by name and version."""
    _, content = server.ask("/v2/repository/index", b"")
    return {"/".join(filter(None, (it["name"], it.get("version")))): it for it in json.loads(content)}


def sign(server: Server, value: float = 1, model: str = "m") -> float:
    """Return what the model m makes of a value: its sign tells its version."""
    x = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [value]}
    status, answer = infer(server, {"inputs": [x]}, model)
    assert status == 200, answer
    return answer["outputs"][0]["data"][0]


def save(repository: Path, version: int, operator: str, name: str = "m", config: str = "max_batch_size: 4") -> Path:
    file = repository / name / str(version) / "model.onnx"
    save_model(file, operator, "x", ["batch", 1], config=config)
    return file


# Start


def test_a_broken_model_does_not_keep_the_others_from_being_served(repository):
    file = repository / "fnn" / "1" / "model.onnx"
    file.write_bytes(file.read_bytes()[:1000])
    with serving(repository) as server:
        assert server.json("/v2/health/ready")[0] == 200
        assert server.json("/v2/models/cnn/ready")[0] == 200
        assert server.json("/v2/models/fnn/ready")[0] == 400
        found = index(server)
        assert found["cnn/1"] == {"name": "cnn", "version": "1", "state": "READY"}
        assert found["fnn/1"]["state"] == "UNAVAILABLE"
        assert found["fnn/1"]["reason"].startswith(f"{file}: expected an ONNX model, got: ")
        metrics = server.ask("/metrics")[1].decode()
        assert 'serving_model_load_failures_total{model="fnn"} 1.0' in metrics
        assert 'serving_model_ready{model="cnn",version="1"} 1.0' in metrics
        server.log.seek(0)
        assert f"serving: {file}: expected an ONNX model, got: " in server.log.read()


def test_with_strict_readiness_a_broken_model_makes_the_server_unready(repository):
    (repository / "fnn" / "config.pbtxt").write_text("unknown: 1")
    command = ("--strict-readiness", *EXPLICIT, "--load-model", "cnn")
    with serving(repository, *command) as server:
        assert server.ask("/v2/repository/models/fnn/load", b"")[0] == 400
        assert server.json("/v2/health/ready") == (503, {"ready": False})
        assert server.ask("/v2/repository/models/fnn/unload", b"")[0] == 200
        assert server.json("/v2/health/ready") == (200, {"ready": True})


def test_with_strict_readiness_a_model_that_is_missing_makes_the_server_unready(repository):
    options = ("--strict-readiness", *EXPLICIT, "--load-model", "cnn", "--load-model", "x")
    with serving(repository, *options, probe="live") as server:
        assert server.json("/v2/health/ready") == (503, {"ready": False})


def test_the_server_does_not_start_without_a_model_that_can_be_loaded(tmp_path):
    file = tmp_path / "m" / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    ended = not_serving(tmp_path)
    first, last = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert first.startswith(f"serving: {file}: expected an ONNX model, got: ")
    assert last == f"serving: {tmp_path}: expected a model that can be served, got none"


def test_the_server_does_not_start_without_models(tmp_path):
    ended = not_serving(tmp_path)
    assert (ended.returncode, ended.stderr) == (
        1,
        f"serving: {tmp_path}: expected NAME/VERSION/model.onnx, got no model; `make repro` builds them\n",
    )


def test_all_versions_that_the_policy_selects_are_served_by_path(tmp_path):
    for version, operator in {1: "Identity", 2: "Neg", 10: "Abs"}.items():
        save(tmp_path, version, operator, config="max_batch_size: 4\nversion_policy { all {} }")
    with serving(tmp_path) as server:
        assert server.json("/v2/models/m")[1]["versions"] == ["1", "2", "10"]
        assert [sign(server, -1, f"m/versions/{version}") for version in (1, 2, 10)] == [-1, 1, 1]
        assert sign(server, -1) == 1


def test_a_model_with_several_inputs_takes_nan_and_infinity(tmp_path):
    save_model(tmp_path / "add" / "3" / "model.onnx", "Add", "ab", ["batch", 2])
    a = {"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [1, float("-inf")]}
    b = {"name": "b", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    tail = np.array([np.nan, 1], np.float32).tobytes()
    with serving(tmp_path) as running:
        body, headers = binary_request({"inputs": [b, a]}, tail)
        status, content = running.ask("/v2/models/add/versions/3/infer", body, **headers)
        assert status == 200
        assert b'"data": [NaN, -Infinity]' in content
        two = {**a, "shape": [2, 2], "data": [1, 2, 3, 4]}
        body, headers = binary_request({"inputs": [b, two]}, tail)
        status, answer = running.json("/v2/models/add/infer", body, **headers)
        assert (status, answer["error"]) == (400, "inputs: expected one batch size, got [1, 2]")


# Model control modes


def test_without_a_model_control_mode_nothing_is_loaded_later(repository):
    with serving(repository) as server:
        for action in ("load", "unload"):
            status, answer = server.json(f"/v2/repository/models/cnn/{action}", b"")
            expected = "load and unload: expected --model-control-mode explicit, got none"
            assert (status, answer["error"]) == (503, expected)


def test_triton_client_loads_and_unloads_models(repository):
    with serving(repository, *EXPLICIT, "--load-model", "cnn") as server:
        client = tritonclient.http.InferenceServerClient(server.address)
        assert {name for name, it in index(server).items() if it.get("state")} == {"cnn/1"}
        assert not client.is_model_ready("fnn")
        client.load_model("fnn")
        assert client.is_model_ready("fnn")
        client.unload_model("cnn")
        assert not client.is_model_ready("cnn")
        assert index(server)["cnn"] == {"name": "cnn", "state": "UNAVAILABLE", "reason": "unloaded"}
        assert [it["name"] for it in json.loads(server.ask("/v2/repository/index", b'{"ready": true}')[1])] == ["fnn"]
        for name in ("nothing", "..", ""):
            with pytest.raises(InferenceServerException):
                client.load_model(name)
        with pytest.raises(InferenceServerException, match="parameters: expected none, got some"):
            client.load_model("cnn", config="{}")


INVALID_MODELS = {
    "warm-up without a type": 'max_batch_size: 4 model_warmup { name: "w", inputs { key: "x" value { dims: 1 } } }',
    "threads": 'parameters { key: "intra_op_thread_count" value { string_value: "99999999999" } }',
    "file name": f'default_model_filename: "{300 * "x"}"',
    "NUL in a file name": 'max_batch_size: 4 output { name: "result", dims: [ 1 ], label_filename: "\\000" }',
    "number of instances": "instance_group { count: -1 }",
    "batch size": "max_batch_size: -1",
}


def test_no_configuration_ends_the_server_or_changes_what_is_served(tmp_path):
    save(tmp_path, 1, "Identity")
    with serving(tmp_path, *POLL) as server:
        for name, config in INVALID_MODELS.items():
            save(tmp_path, 1, "Neg", name, config)
        (tmp_path / "pipe" / "1").mkdir(parents=True)
        os.mkfifo(tmp_path / "pipe" / "1" / "model.onnx")
        wait_until(lambda: len(index(server)) == 2 + len(INVALID_MODELS))
        wait_until(lambda: all(it.get("state") for it in index(server).values()))
        unavailable = {it["name"]: it["reason"] for it in index(server).values() if it["state"] == "UNAVAILABLE"}
        assert unavailable.keys() == {*INVALID_MODELS, "pipe"}
        assert all(str(tmp_path / name) in reason for name, reason in unavailable.items())
        assert sign(server) == 1


def test_polling_follows_symbolic_links_and_survives_a_repository_that_is_away(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    file = save(tmp_path / "elsewhere", 1, "Identity")
    repository = tmp_path / "repository"
    (repository / "m").mkdir(parents=True)
    (repository / "m" / "1").symlink_to(file.parent)
    with serving(repository, *POLL) as server:
        save(tmp_path / "elsewhere", 1, "Neg")
        wait_until(lambda: sign(server) == -1)
        repository.rename(tmp_path / "away")
        time.sleep(3)
        assert sign(server) == -1
        (tmp_path / "away").rename(repository)


def test_a_broken_new_version_leaves_the_old_one_serving(tmp_path):
    save(tmp_path, 1, "Identity")
    with serving(tmp_path, *EXPLICIT, "--load-model", "*") as server:
        file = save(tmp_path, 2, "Neg")
        content = file.read_bytes()
        file.write_bytes(content[:20])
        status, answer = server.json("/v2/repository/models/m/load", b"")
        assert status == 400
        assert f"{file}: expected an ONNX model, got: " in answer["error"]
        assert sign(server) == 1
        found = index(server)
        assert (found["m/1"]["state"], found["m/2"]["state"]) == ("READY", "UNAVAILABLE")
        file.write_bytes(content)
        assert server.ask("/v2/repository/models/m/load", b"")[0] == 200
        assert sign(server) == -1
        assert index(server) == {"m/2": {"name": "m", "version": "2", "state": "READY"}}


def test_polling_finds_new_changed_and_removed_models(tmp_path):
    save(tmp_path, 1, "Identity")
    with serving(tmp_path, *POLL) as server:
        save(tmp_path, 2, "Neg")
        wait_until(lambda: sign(server) == -1)
        save(tmp_path, 1, "Identity", name="other")
        wait_until(lambda: "other/1" in index(server))
        shutil.rmtree(tmp_path / "other")
        wait_until(lambda: "other/1" not in index(server))
        shutil.rmtree(tmp_path / "m" / "2")
        wait_until(lambda: sign(server) == 1)


def test_a_version_that_is_still_being_copied_is_not_loaded(tmp_path):
    content = save(tmp_path, 1, "Neg").read_bytes()
    save(tmp_path, 1, "Identity")
    with serving(tmp_path, *POLL, "--repository-poll-secs", "2") as server:
        file = tmp_path / "m" / "2" / "model.onnx"
        file.parent.mkdir()
        with file.open("wb", buffering=0) as copy:
            for position in range(0, len(content), 4):
                copy.write(content[position : position + 4])
                time.sleep(0.05)
                assert sign(server) == 1
        wait_until(lambda: sign(server) == -1)
        assert "load_failures_total{" not in server.ask("/metrics")[1].decode()


def test_directories_that_vanish_while_they_are_read_are_ignored(tmp_path):
    save(tmp_path, 1, "Identity")
    stop = threading.Event()

    def copy_and_remove() -> None:
        while not stop.is_set():
            shutil.copytree(tmp_path / "m", tmp_path / "other")
            shutil.rmtree(tmp_path / "other")

    with ThreadPoolExecutor(1) as executor:
        copying = executor.submit(copy_and_remove)
        for _ in range(3000):
            assert "m" in model_names(tmp_path)
            fingerprint(tmp_path / "other")
        stop.set()
        copying.result()


def test_no_request_is_lost_while_versions_change_under_load(tmp_path):
    save(tmp_path, 1, "Identity")
    failures: list[object] = []
    stop = threading.Event()

    def send_requests() -> None:
        while not stop.is_set():
            try:
                assert abs(sign(server)) == 1
            except Exception as error:
                failures.append(error)

    with serving(tmp_path, *EXPLICIT, "--load-model", "*") as server:
        threads = [threading.Thread(target=send_requests) for _ in range(4)]
        for thread in threads:
            thread.start()
        for version in range(2, 12):
            save(tmp_path, version, ("Neg", "Identity")[version % 2])
            assert server.ask("/v2/repository/models/m/load", b"")[0] == 200
            shutil.rmtree(tmp_path / "m" / str(version - 1))
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


# Locks


def write_lock(repository: Path, lock: Path) -> None:
    """Write a dvc.lock with the MD5 digests of a repository's files."""
    outs = [
        {
            "path": f"artifacts/model_repository/{file.relative_to(repository)}",
            "md5": md5(file.read_bytes()).hexdigest(),
        }
        for file in repository.rglob("*")
        if file.is_file()
    ]
    lock.write_text(json.dumps({"schema": "2.0", "stages": {"export": {"outs": outs}}}))  # JSON is YAML, too


def test_files_that_match_the_lock_are_served(repository, tmp_path):
    write_lock(repository, tmp_path / "dvc.lock")
    with serving(repository, "--lock", str(tmp_path / "dvc.lock")) as running:
        assert [running.json(f"/v2/models/{name}/ready")[0] for name in ("cnn", "fnn")] == [200, 200]


@pytest.mark.parametrize("name", ["fnn/1/model.onnx", "fnn/labels.txt", "fnn/config.pbtxt"])
def test_a_model_with_a_file_that_differs_from_the_lock_is_not_served(repository, tmp_path, name):
    lock, file = tmp_path / "dvc.lock", repository / name
    write_lock(repository, lock)
    locked = md5(file.read_bytes()).hexdigest()
    file.write_bytes(file.read_bytes() + b"\n")
    found = md5(file.read_bytes()).hexdigest()
    with serving(repository, "--lock", str(lock)) as server:
        assert server.json("/v2/models/fnn")[0] == 404
        error = f"{file}: expected MD5 {locked}, got {found}; remove the file, then `dvc checkout` restores it"
        assert index(server)["fnn/1"]["reason"] == error


def test_a_model_that_is_not_in_the_lock_is_not_served(repository, tmp_path):
    lock = tmp_path / "dvc.lock"
    write_lock(repository, lock)
    (repository / "fnn").rename(repository / "mine")
    with serving(repository, "--lock", str(lock)) as server:
        assert (
            index(server)["mine/1"]["reason"]
            == f"{lock}: expected an output that ends with mine/config.pbtxt, got none"
        )


def test_a_new_version_is_checked_against_the_lock_that_lies_there_then(tmp_path):
    repository, lock = tmp_path / "repository", tmp_path / "dvc.lock"
    save(repository, 1, "Identity")
    write_lock(repository, lock)
    with serving(repository, *EXPLICIT, "--load-model", "m", "--lock", str(lock)) as server:
        save(repository, 2, "Neg")
        assert server.ask("/v2/repository/models/m/load", b"")[0] == 400
        assert sign(server) == 1
        write_lock(repository, lock)
        assert server.ask("/v2/repository/models/m/load", b"")[0] == 200
        assert sign(server) == -1


@pytest.mark.parametrize("content", [None, "text", "stages: {fnn: {outs: [model.onnx]}}"])
def test_the_server_does_not_start_with_an_invalid_lock(repository, tmp_path, content):
    lock = tmp_path / "dvc.lock"
    if content:
        lock.write_text(content)
    ended = not_serving(repository, "--lock", str(lock))
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"serving: {lock}: expected ")
    assert ended.stderr.count("\n") == 1
