import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from stages import artifacts, params, train
from stages.errors import UserError
from tests.conftest import PROJECT

ENVIRONMENT = os.environ | {"PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": ""}


@pytest.fixture
def start(workspace):
    """Start trainings of fnn in processes of their own, which end with the test."""
    processes = []

    def start_training(**options) -> subprocess.Popen:
        command = [sys.executable, "-m", "stages.train", "fnn"]
        processes.append(subprocess.Popen(command, cwd=workspace, env=ENVIRONMENT, text=True, **options))
        return processes[-1]

    yield start_training
    for process in processes:
        process.kill()
        process.wait()


def wait_for(condition, process: subprocess.Popen) -> None:
    """Wait until the process has brought it about."""
    while not condition():
        assert process.poll() is None
        time.sleep(0.01)


def content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def outcome(model: str) -> dict[str, bytes]:
    """The weights and the log, by name."""
    files = [artifacts.weights(model), *artifacts.training(model).rglob("*.*")]
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture
def interrupted(workspace, monkeypatch):
    """A training of fnn that broke off in its fourth epoch, and the outcome that it would have had."""
    train.main("fnn")
    expected = outcome("fnn")
    forget("fnn")
    break_off(monkeypatch, "fnn", epochs=3)
    return expected


def forget(model: str) -> None:
    artifacts.remove(artifacts.weights(model))
    artifacts.remove(artifacts.training(model))


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
    forget(model)
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


def test_a_killed_training_goes_on(workspace, change, start, capsys):
    change({"recipes.default.fnn.epochs": 200})
    train.main("fnn")
    expected = outcome("fnn")
    forget("fnn")
    for _ in range(2):
        before = content(artifacts.checkpoint("fnn"))
        process = start(stdout=subprocess.DEVNULL)
        wait_for(lambda before=before: content(artifacts.checkpoint("fnn")) != before, process)
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


def test_a_newer_training_takes_over_from_an_older_after_its_epoch(workspace, change, start):
    change({"recipes.default.fnn.epochs": 200})
    older = start(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(artifacts.checkpoint("fnn").exists, older)
    newer = start(stdout=subprocess.PIPE)
    assert newer.stdout.readline() == "fnn is being trained by an older process: waiting for the end of its epoch\n"
    _, told = older.communicate()
    assert older.returncode == 1
    stopped = re.fullmatch(r"train: stopped after epoch (\d+), for a newer process goes on from there\n", told)
    out, _ = newer.communicate()
    assert newer.returncode == 0
    assert f"going on after epoch {stopped[1]}\n" in out
    assert not artifacts.checkpoint("fnn").exists()


def test_nothing_is_left_to_a_newer_training_that_waits_for_the_last_epoch(workspace, capsys):
    train.main("fnn")
    expected = outcome("fnn")
    forget("fnn")
    wanted = iter([False] * 7 + [True])
    with pytest.raises(UserError, match="^stopped after epoch 8, for a newer process goes on from there$"):
        train.train("fnn", params.load(), lambda: next(wanted))
    capsys.readouterr()
    train.main("fnn")
    assert "going on after epoch 8\n" in capsys.readouterr().out
    assert outcome("fnn") == expected
