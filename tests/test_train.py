import subprocess

import pytest
import torch
from safetensors.torch import load_file

from stages import artifacts, params, train
from stages.checkpoint import Checkpoint
from stages.dataset import Split
from stages.errors import UserError

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize("model", ["fnn", "cnn"])
def test_the_same_seed_gives_the_same_bytes(workspace, change, model, device):
    change({"device": device})
    train.main(model)
    first = artifacts.weights(model).read_bytes()
    train.main(model)
    assert artifacts.weights(model).read_bytes() == first


def test_another_seed_gives_other_weights(workspace, change):
    train.main("fnn")
    first = artifacts.weights("fnn").read_bytes()
    change({"seed": 1})
    train.main("fnn")
    assert artifacts.weights("fnn").read_bytes() != first


def test_training_learns_and_logs_every_epoch(workspace, capsys):
    train.main("fnn")
    out = capsys.readouterr().out
    assert ["dense1", "[n,", "32]", "25,120"] in [line.split() for line in out.splitlines()]
    assert [line.split()[1] for line in out.splitlines() if line.startswith("epoch")] == [f"{n}/8" for n in range(1, 9)]
    last = artifacts.read_json(artifacts.training("fnn") / "metrics.json")
    assert last["val_accuracy"] > 0.8
    for metric in ("loss", "accuracy", "val_loss", "val_accuracy"):
        lines = (artifacts.training("fnn") / "plots" / "metrics" / f"{metric}.tsv").read_text().splitlines()
        assert lines[0].split("\t") == ["step", metric]
        assert [line.split("\t")[0] for line in lines[1:]] == [str(epoch) for epoch in range(1, 9)]
        assert float(lines[-1].split("\t")[1]) == last[metric]


def test_what_is_logged_holds_no_time_and_no_path(workspace, models_folder):
    train.main("fnn")
    here, elsewhere = (
        {path.relative_to(folder): path.read_bytes() for path in (folder / artifacts.training("fnn")).rglob("*.*")}
        for folder in (workspace, models_folder)
    )
    assert len(here) == 5
    assert here == elsewhere


def test_held_out_images_are_a_share_that_training_never_sees():
    split = Split(torch.arange(50).to(torch.uint8).view(50, 1, 1, 1).expand(50, 1, 28, 28), torch.arange(50))
    training, validation = train.hold_out(split, 0.1, seed=3)
    assert len(validation) == 5
    assert sorted(training.labels.tolist() + validation.labels.tolist()) == list(range(50))
    assert torch.equal(training.images[:, 0, 0, 0].long(), training.labels)
    assert not torch.equal(train.hold_out(split, 0.1, seed=4)[1].labels, validation.labels)


def test_an_epoch_shows_every_image_once_in_batches_of_nearly_equal_size():
    split = Split(torch.zeros(129, 1, 28, 28, dtype=torch.uint8), torch.arange(129))
    batches = [batch.labels.tolist() for batch in train.shuffled_batches(split, 2)]
    assert [len(batch) for batch in batches] == [65, 64]
    assert sorted(sum(batches, [])) == list(range(129))
    assert sum(batches, []) != list(range(129))


def test_weights_are_float32_tensors_in_safetensors(workspace):
    train.main("cnn")
    weights = load_file(artifacts.weights("cnn"))
    assert weights["conv1.weight"].shape == (4, 1, 3, 3)
    assert weights["conv1.weight"].dtype == torch.float32


def test_a_corrupt_input_leaves_the_earlier_weights(workspace):
    artifacts.weights("fnn").parent.mkdir()
    artifacts.weights("fnn").write_text("earlier")
    (artifacts.DATA / artifacts.TRAIN_LABELS).write_bytes(b"damaged")
    with pytest.raises(UserError, match="train-labels-idx1-ubyte is damaged"):
        train.main("fnn")
    assert artifacts.weights("fnn").read_text() == "earlier"
    assert not artifacts.training("fnn").exists()


def test_a_git_repository_without_a_commit_is_a_users_mistake(workspace):
    subprocess.run(["git", "init", "--quiet"], check=True)
    with pytest.raises(UserError, match="^DVCLive needs a git repository with a commit: "):
        train.main("fnn")


def test_with_a_warm_up_the_learning_rate_rises_and_falls(workspace):
    recipe = params.load().recipes["default"]["fnn"].model_copy(update={"warm_up": 0.3})
    rates = [train.learning_rate(recipe, step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(0)
    assert rates[30] == max(rates) == recipe.learning_rate
    assert rates[:31] == sorted(rates[:31])
    assert rates[30:] == sorted(rates[30:], reverse=True)
    assert rates[100] == pytest.approx(0)


def test_without_a_warm_up_the_learning_rate_is_constant(workspace):
    recipe = params.load().recipes["notebook"]["fnn"]
    assert {train.learning_rate(recipe, step / 10) for step in range(11)} == {recipe.learning_rate}


def test_images_are_distorted_in_the_first_share_of_the_training_alone(workspace, change, monkeypatch):
    change({"recipes.default.fnn.epochs": 4, "recipes.default.fnn.distort_until": 0.75})
    epochs, distorted = [], []
    shuffled_batches = train.shuffled_batches

    def count_epochs(split, count):
        epochs.append(count)
        return shuffled_batches(split, count)

    monkeypatch.setattr(train, "shuffled_batches", count_epochs)
    monkeypatch.setattr(train, "distort", lambda images, limits: distorted.append(len(epochs)) or images / 255)
    train.main("fnn")
    assert sorted(set(distorted)) == [1, 2, 3]
    assert len(distorted) == 3 * epochs[0]


@needs_gpu
@pytest.mark.parametrize("model", ["fnn", "cnn"])
def test_a_gpu_trains_as_the_cpu_does(workspace, model):
    parameters = params.load(model)
    # without what each device draws for itself
    recipe = parameters.recipes["default"][model].model_copy(update={"distortion": None, "dropout": 0.0})
    ways = {}
    for device in ("cpu", "cuda"):
        train.set_up(threads=0)
        network, training, validation = train.prepare(model, parameters, recipe, seed=0)
        checkpoint = Checkpoint(workspace / f"{device}.checkpoint", fingerprint="")
        ways[device] = list(train.fit(network, training.to(device), validation.to(device), recipe, 0, checkpoint))
    for on_cpu, on_gpu in zip(ways["cpu"], ways["cuda"]):
        assert on_gpu["loss"] == pytest.approx(on_cpu["loss"], rel=0.02)
        assert on_gpu["val_accuracy"] == pytest.approx(on_cpu["val_accuracy"], abs=0.02)


def test_a_loss_beyond_all_bounds_is_a_users_mistake_and_leaves_the_earlier_results(models, change):
    before = artifacts.weights("fnn").read_bytes(), (artifacts.training("fnn") / "metrics.json").read_bytes()
    change({"recipes.default.fnn.learning_rate": 1e30})
    with pytest.raises(UserError, match="no longer finite; try a learning_rate below 1e.30$"):
        train.main("fnn")
    assert (artifacts.weights("fnn").read_bytes(), (artifacts.training("fnn") / "metrics.json").read_bytes()) == before
    assert [path.name for path in artifacts.training("fnn").parent.glob(".*")] == [".training.lock"]
