import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from stages import artifacts, checkpoint, devices, evaluate, params, train
from stages.errors import UserError
from tests.conftest import PROJECT

ENVIRONMENT = os.environ | {"PYTHONPATH": str(PROJECT)}
CORRUPT = "artifacts/fnn/.checkpoint: corrupt checkpoint, training from the start"
OTHER = "artifacts/fnn/.checkpoint: checkpoint of other parameters, data, code or hardware, training from the start"


@pytest.fixture
def start(workspace):
    """A function that starts a training of fnn in its own process, which is killed at the end of the test."""
    processes = []

    def start_training() -> subprocess.Popen:
        command = [sys.executable, "-m", "stages.train", "fnn"]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": accept_sigint}
        processes.append(subprocess.Popen(command, cwd=workspace, env=ENVIRONMENT, **options))
        return processes[-1]

    yield start_training
    for process in processes:
        process.kill()
        process.communicate()


def accept_sigint() -> None:
    """Undo that a shell makes its background jobs, such as these tests, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Wait for a condition that the running process brings about."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def results(model: str) -> dict[str, bytes]:
    """Return the weights and the metrics of each epoch, by file name."""
    files = [artifacts.weights(model), *artifacts.training(model).rglob("*.*")]
    return {path.name: path.read_bytes() for path in files}


def remove_results(model: str) -> None:
    for path in (artifacts.weights(model), artifacts.training(model), artifacts.checkpoint(model)):
        artifacts.remove(path)


def train_from_the_start(model: str) -> dict[str, bytes]:
    """Return the results of a training without interruption, and remove them."""
    train.main(model)
    expected = results(model)
    remove_results(model)
    return expected


def interrupt(monkeypatch: pytest.MonkeyPatch, model: str, epochs: int) -> None:
    """Train, and interrupt the training in the epoch after `epochs`."""
    shuffled_batches = train.shuffled_batches
    calls = []

    def interrupt_in_epoch(split, count):
        calls.append(count)
        for number, batch in enumerate(shuffled_batches(split, count)):
            if len(calls) > epochs and number == 1:
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "shuffled_batches", interrupt_in_epoch)
        train.main(model)


@pytest.fixture
def interrupted(workspace, monkeypatch) -> dict[str, bytes]:
    """The results of fnn without interruption; the workspace has a checkpoint after 3 epochs."""
    expected = train_from_the_start("fnn")
    interrupt(monkeypatch, "fnn", epochs=3)
    return expected


@pytest.mark.parametrize("model", ["fnn", "cnn"])
def test_an_interrupted_training_resumes_to_the_same_bytes(workspace, monkeypatch, capsys, model):
    expected = train_from_the_start(model)
    interrupt(monkeypatch, model, epochs=1)
    assert artifacts.checkpoint(model).is_file()
    assert not artifacts.training(model).exists()
    capsys.readouterr()

    train.main(model)
    out = capsys.readouterr().out
    assert f"artifacts/{model}/.checkpoint: resuming after epoch 1\n" in out
    assert "epoch 1/" not in out
    assert results(model) == expected


def test_a_finished_training_is_not_repeated_until_its_evaluation_removes_the_checkpoint(workspace, capsys):
    train.main("fnn")
    expected = results("fnn")
    capsys.readouterr()
    train.main("fnn")
    out = capsys.readouterr().out
    assert "resuming after epoch 8\n" in out
    assert "epoch 8/8" not in out
    assert results("fnn") == expected
    evaluate.main("fnn")
    assert not artifacts.checkpoint("fnn").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"recipes.default.fnn.learning_rate": 0.1},
        {"networks.fnn.hidden": [32, 15]},
        {"seed": 1},
        {"data.validation_fraction": 0.2},
    ],
)
def test_a_checkpoint_of_other_parameters_is_ignored(interrupted, change, capsys, changes):
    change(changes)
    train.main("fnn")
    out = capsys.readouterr().out
    assert out.count(OTHER) == 1
    assert "epoch 1/8" in out


on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU, threads and processor decide no weights")


@on_cpu
def test_a_checkpoint_of_another_number_of_threads_is_ignored(interrupted, monkeypatch, capsys):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    train.main("fnn")
    assert capsys.readouterr().out.count(OTHER) == 1


@on_cpu
def test_a_checkpoint_of_another_processor_is_ignored(interrupted, monkeypatch, capsys):
    monkeypatch.setattr(devices, "processor_name", lambda: "another")
    train.main("fnn")
    assert capsys.readouterr().out.count(OTHER) == 1


@pytest.mark.parametrize(
    ("module", "is_imported"),
    [("train", True), ("augmentation", True), ("networks", True), ("__init__", True), ("card", False)]
    + [("evaluate", False), ("export", False)],
)
def test_the_fingerprint_covers_the_modules_that_train_imports_and_no_others(
    workspace, monkeypatch, module, is_imported
):
    def fingerprint() -> str:
        return checkpoint.compute_fingerprint("fnn", params.load_params(), torch.device("cpu"))

    before, digest = fingerprint(), artifacts.sha256_digest
    monkeypatch.setattr(artifacts, "sha256_digest", lambda path: "0" if path.stem == module else digest(path))
    assert (fingerprint() != before) == is_imported


def test_a_checkpoint_of_other_code_is_ignored(interrupted, monkeypatch, capsys):
    digest = artifacts.sha256_digest
    monkeypatch.setattr(artifacts, "sha256_digest", lambda path: "0" if path.name == "train.py" else digest(path))
    train.main("fnn")
    assert capsys.readouterr().out.count(OTHER) == 1
    assert results("fnn") == interrupted


@pytest.mark.parametrize("position", [0, 70, 1000, -1])
def test_a_checkpoint_with_a_changed_byte_is_ignored(interrupted, capsys, position):
    content = bytearray(artifacts.checkpoint("fnn").read_bytes())
    content[position] ^= 1
    artifacts.checkpoint("fnn").write_bytes(content)
    train.main("fnn")
    assert capsys.readouterr().out.count(CORRUPT) == 1
    assert results("fnn") == interrupted


@pytest.mark.parametrize("size", [0, 30, 5000])
def test_a_truncated_checkpoint_is_ignored(interrupted, capsys, size):
    artifacts.checkpoint("fnn").write_bytes(artifacts.checkpoint("fnn").read_bytes()[:size])
    train.main("fnn")
    assert capsys.readouterr().out.count(CORRUPT) == 1
    assert results("fnn") == interrupted


@pytest.mark.timeout(60)
def test_ctrl_c_in_the_logging_of_an_epoch_does_not_hang(workspace, monkeypatch):
    """DVCLive's end waits for a thread that Ctrl-C may have stopped from starting."""

    class InterruptedThread:
        def __init__(self, **options) -> None: ...

        def start(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr("dvclive.live.threading", SimpleNamespace(Thread=InterruptedThread))
    with pytest.raises(KeyboardInterrupt):
        train.main("fnn")


def test_ctrl_c_ends_a_training_with_one_line_and_keeps_its_checkpoint(workspace, change, start):
    """test_pipeline.py kills the process of a training."""
    change({"recipes.default.fnn.epochs": 10_000})  # so that it is still training
    process = start()
    wait_until(artifacts.checkpoint("fnn").exists, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (130, "train: interrupted; run the same command again to continue\n")
    left = {path.name for path in artifacts.checkpoint("fnn").parent.iterdir()}
    assert left == {".checkpoint", ".training.claim", ".training.lock"}


def test_a_training_stops_after_an_epoch_in_which_a_newer_process_claims_its_lock(workspace, monkeypatch):
    """test_preemptible_lock.py tests the lock with several processes."""
    save = checkpoint.Checkpoint.save

    def save_while_another_claims(*arguments) -> None:
        save(*arguments)
        artifacts.training_lock("fnn").with_suffix(".claim").write_text("a newer process")

    monkeypatch.setattr(checkpoint.Checkpoint, "save", save_while_another_claims)
    with pytest.raises(UserError, match="^stopped: a newer process resumes from the checkpoint$"):
        train.main("fnn")
    assert artifacts.checkpoint("fnn").exists()
    assert not artifacts.weights("fnn").exists()


def test_a_process_preempted_in_its_last_epoch_leaves_a_finished_checkpoint(workspace, capsys):
    expected = train_from_the_start("fnn")
    preempted = iter([False] * 7 + [True])
    with pytest.raises(UserError, match="^stopped: a newer process resumes from the checkpoint$"):
        train.train("fnn", params.load_params(), lambda: next(preempted))
    capsys.readouterr()
    train.main("fnn")
    assert "resuming after epoch 8\n" in capsys.readouterr().out
    assert results("fnn") == expected
