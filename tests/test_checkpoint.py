import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from stages import artifacts, train
from tests.conftest import PROJECT

ENVIRONMENT = os.environ | {"PYTHONPATH": str(PROJECT)}


def start(workspace, **options) -> subprocess.Popen:
    """Train fnn in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "stages.train", "fnn"], cwd=workspace, env=ENVIRONMENT, text=True, **options
    )


def wait_for(condition) -> None:
    while not condition():
        time.sleep(0.01)


def content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def outcome(model: str) -> dict[str, bytes]:
    """The weights and the log, by name."""
    files = [artifacts.weights(model), *artifacts.training(model).rglob("*.*")]
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture
def interrupted(workspace, monkeypatch):
    """A training of fnn that broke off in its fourth epoch, and the outcome that it would have had."""
    train.main("fnn")
    expected = outcome("fnn")
    artifacts.weights("fnn").unlink()
    break_off(monkeypatch, "fnn", epochs=3)
    return expected


def break_off(monkeypatch, model: str, epochs: int) -> None:
    shuffled_batches = train.shuffled_batches
    calls = []

    def break_in_epoch(split, count):
        calls.append(count)
        for number, batch in enumerate(shuffled_batches(split, count)):
            if len(calls) > epochs and number == 1:
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "shuffled_batches", break_in_epoch)
        train.main(model)


@pytest.mark.parametrize("model", ["fnn", "cnn"])
def test_a_stopped_training_goes_on_and_ends_with_the_same_bytes(workspace, monkeypatch, capsys, model):
    train.main(model)
    expected = outcome(model)
    artifacts.remove(artifacts.training(model))
    break_off(monkeypatch, model, epochs=1)
    assert artifacts.checkpoint(model).is_file()
    assert not artifacts.training(model).exists()
    capsys.readouterr()

    train.main(model)
    out = capsys.readouterr().out
    assert "going on after epoch 1" in out
    assert "epoch 1/" not in out
    assert outcome(model) == expected
    assert not artifacts.checkpoint(model).exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"recipes.default.fnn.learning_rate": 0.1},
        {"networks.fnn.hidden": [32, 15]},
        {"seed": 1},
        {"data.validation": 0.2},
    ],
)
def test_a_checkpoint_of_other_parameters_is_ignored(interrupted, change, capsys, changes):
    change(changes)
    train.main("fnn")
    out = capsys.readouterr().out
    assert out.count("artifacts/fnn/.checkpoint is of other parameters, data, code or another machine") == 1
    assert "epoch 1/8" in out
    assert not artifacts.checkpoint("fnn").exists()


def test_a_checkpoint_of_another_number_of_threads_is_ignored(interrupted, monkeypatch, capsys):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    train.main("fnn")
    assert "epoch 1/8" in capsys.readouterr().out


def test_a_checkpoint_of_other_code_is_ignored(interrupted, monkeypatch, capsys):
    digest = artifacts.sha256
    monkeypatch.setattr(artifacts, "sha256", lambda path: "0" if path.name == "train.py" else digest(path))
    train.main("fnn")
    assert "is of other parameters, data, code or another machine: starting anew" in capsys.readouterr().out
    assert outcome("fnn") == interrupted


@pytest.mark.parametrize("place", [0, 70, 1000, -1])
def test_a_damaged_checkpoint_is_ignored(interrupted, capsys, place):
    content = bytearray(artifacts.checkpoint("fnn").read_bytes())
    content[place] ^= 1
    artifacts.checkpoint("fnn").write_bytes(content)
    train.main("fnn")
    assert capsys.readouterr().out.count("artifacts/fnn/.checkpoint is damaged: starting anew") == 1
    assert outcome("fnn") == interrupted


@pytest.mark.parametrize("size", [0, 30, 5000])
def test_a_truncated_checkpoint_is_ignored(interrupted, capsys, size):
    artifacts.checkpoint("fnn").write_bytes(artifacts.checkpoint("fnn").read_bytes()[:size])
    train.main("fnn")
    assert capsys.readouterr().out.count("artifacts/fnn/.checkpoint is damaged: starting anew") == 1
    assert outcome("fnn") == interrupted


def test_a_killed_training_goes_on(workspace, change, capsys):
    change({"recipes.default.fnn.epochs": 200})
    train.main("fnn")
    expected = outcome("fnn")
    for _ in range(2):
        before = content(artifacts.checkpoint("fnn"))
        process = start(workspace, stdout=subprocess.DEVNULL)
        wait_for(lambda before=before: content(artifacts.checkpoint("fnn")) != before)
        process.send_signal(signal.SIGKILL)
        process.wait()
    capsys.readouterr()
    train.main("fnn")
    assert "going on after epoch" in capsys.readouterr().out
    assert outcome("fnn") == expected
    assert sorted(path.name for path in (workspace / "artifacts" / "fnn").iterdir()) == [
        ".training.lock",
        "training",
        "weights.safetensors",
    ]


def test_a_training_waits_for_another_of_the_same_model(workspace):
    artifacts.training_lock("fnn").parent.mkdir()
    with FileLock(artifacts.training_lock("fnn")):
        process = start(workspace, stdout=subprocess.PIPE)
        assert process.stdout.readline() == "fnn is being trained by another process: waiting for it\n"
        assert process.poll() is None
    out, _ = process.communicate()
    assert process.returncode == 0
    assert "epoch 8/8" in out


def test_a_training_whose_dvc_was_killed_stops_after_its_epoch(workspace, change):
    change({"recipes.default.fnn.epochs": 3000})
    stage = f"{sys.executable} -m stages.train fnn & wait"
    environment = ENVIRONMENT | {"DVC_STAGE": "train@fnn"}
    dvc = subprocess.Popen(["sh", "-c", stage], cwd=workspace, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for(artifacts.checkpoint("fnn").exists)
    dvc.send_signal(signal.SIGKILL)
    line = dvc.stderr.read().splitlines()[-1]
    assert line.startswith("train: dvc was killed: stopped after epoch ")
    assert artifacts.checkpoint("fnn").exists()
    assert not artifacts.weights("fnn").exists()
