import subprocess

import pytest
import torch
from safetensors.torch import load_file

from stages import artifacts, card, devices, evaluate, export, params, quantize, train, verify, verify_int8
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
    artifacts.remove(artifacts.checkpoint(model))
    train.main(model)
    assert artifacts.weights(model).read_bytes() == first


def test_another_seed_gives_other_weights(workspace, change):
    train.main("fnn")
    first = artifacts.weights("fnn").read_bytes()
    change({"seed": 1})
    train.main("fnn")
    assert artifacts.weights("fnn").read_bytes() != first


def test_the_validation_accuracy_rises_and_every_epoch_is_logged(workspace, capsys):
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


def test_the_logged_metrics_hold_no_times_and_no_paths(workspace, models_folder):
    train.main("fnn")
    here, elsewhere = (
        {path.relative_to(folder): path.read_bytes() for path in (folder / artifacts.training("fnn")).rglob("*.*")}
        for folder in (workspace, models_folder)
    )
    assert len(here) == 7
    assert here == elsewhere


def test_the_environment_of_a_training_is_written_beside_its_metrics(workspace):
    train.main("fnn")
    environment = artifacts.read_json(artifacts.training_environment("fnn"))
    assert environment == devices.environment(devices.select_device("auto"), torch.float32)


@pytest.mark.parametrize(
    ("has_bfloat16", "words"), [(True, "cpu, in bfloat16"), (False, "cpu, in float32 because it has no bfloat16")]
)
def test_a_recipe_in_bfloat16_trains_float32_weights_and_says_in_what(
    workspace, change, monkeypatch, capsys, has_bfloat16, words
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": has_bfloat16})
    change({"device": "cpu"})
    train.main("cnn")
    before = artifacts.weights("cnn").read_bytes()
    change({"recipes.default.cnn.precision": "bfloat16"})
    train.main("cnn")
    tensors = load_file(artifacts.weights("cnn")).values()
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float32}
    assert (artifacts.weights("cnn").read_bytes() == before) is not has_bfloat16
    assert capsys.readouterr().out.rstrip().splitlines()[-2].endswith(f" s on {words}")
    assert artifacts.read_json(artifacts.training("cnn") / "metrics.json")["val_accuracy"] > 0.5


def test_the_validation_split_is_a_fraction_that_no_training_step_uses():
    split = Split(torch.arange(50).to(torch.uint8).view(50, 1, 1, 1).expand(50, 1, 28, 28), torch.arange(50))
    training, validation = train.split_validation(split, 0.1, seed=3)
    assert len(validation) == 5
    assert sorted(training.labels.tolist() + validation.labels.tolist()) == list(range(50))
    assert torch.equal(training.images[:, 0, 0, 0].long(), training.labels)
    assert not torch.equal(train.split_validation(split, 0.1, seed=4)[1].labels, validation.labels)


def test_an_epoch_has_every_image_once_in_batches_of_nearly_equal_size():
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
    (artifacts.DATA / artifacts.TRAIN_LABELS).write_bytes(b"corrupt")
    with pytest.raises(UserError, match="train-labels-idx1-ubyte: expected the SHA-256 "):
        train.main("fnn")
    assert artifacts.weights("fnn").read_text() == "earlier"
    assert not artifacts.training("fnn").exists()


def test_a_git_repository_without_a_commit_is_a_user_error(workspace):
    subprocess.run(["git", "init", "--quiet"], check=True)
    with pytest.raises(UserError, match="^DVCLive: expected a git repository with a commit, got "):
        train.main("fnn")


def test_with_a_warm_up_the_learning_rate_follows_a_one_cycle_schedule(workspace):
    recipe = params.load_params().recipes["default"]["fnn"].model_copy(update={"warmup_fraction": 0.3})
    rates = [train.learning_rate(recipe, step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(0)
    assert rates[30] == max(rates) == recipe.learning_rate
    assert rates[:31] == sorted(rates[:31])
    assert rates[30:] == sorted(rates[30:], reverse=True)
    assert rates[100] == pytest.approx(0)


def test_without_a_warm_up_the_learning_rate_is_constant(workspace):
    recipe = params.load_params().recipes["notebook"]["fnn"]
    assert {train.learning_rate(recipe, step / 10) for step in range(11)} == {recipe.learning_rate}


def test_images_are_augmented_in_the_first_fraction_of_the_training_only(workspace, change, monkeypatch):
    change({"recipes.default.fnn.epochs": 4, "recipes.default.fnn.augment_until": 0.75})
    epochs, augmented = [], []
    shuffled_batches = train.shuffled_batches

    def count_epochs(split, count):
        epochs.append(count)
        return shuffled_batches(split, count)

    def count_batches(images, limits):
        augmented.append(len(epochs))
        return images / 255

    monkeypatch.setattr(train, "shuffled_batches", count_epochs)
    monkeypatch.setattr(train, "augment", count_batches)
    train.main("fnn")
    assert sorted(set(augmented)) == [1, 2, 3]
    assert len(augmented) == 3 * epochs[0]


@pytest.mark.parametrize(
    ("recipe", "model"),
    [("fast", "fnn"), ("fast", "cnn"), ("notebook", "fnn"), ("notebook", "cnn")],
)
def test_the_other_recipes_train_their_models(workspace, change, recipe, model):
    change({"recipe": recipe, "models": [model], f"recipes.{recipe}.{model}.epochs": 3})
    train.main(model)
    metrics = artifacts.read_json(artifacts.training(model) / "metrics.json")
    assert metrics["step"] == 3
    assert metrics["val_accuracy"] > 0.3


@pytest.mark.parametrize("model", ["keras_fnn", "keras_cnn"])
def test_a_keras_model_passes_through_all_stages(workspace, change, model):
    change({"recipe": "notebook", "models": [model], f"minimum_accuracy.{model}": 0.5, "int8.max_accuracy_drop": 1})
    for stage in (train, evaluate, export, verify, quantize, verify_int8, card):
        stage.main(model)
    assert "| initialization | glorot |" in artifacts.model_card(model).read_text()


@needs_gpu
@pytest.mark.parametrize("model", ["fnn", "cnn"])
def test_trainings_on_gpu_and_cpu_have_similar_metrics(workspace, model):
    parameters = params.load_params(model)
    # Augmentation and dropout draw different random numbers on each device.
    recipe = parameters.recipes["default"][model].model_copy(update={"augmentation": None, "dropout": 0.0})
    epochs = {}
    for device in ("cpu", "cuda"):
        train.configure_torch(threads=0)
        network, data = train.prepare_training(model, parameters, recipe, seed=0)
        checkpoint = Checkpoint(workspace / f"{device}.checkpoint", fingerprint="")
        epochs[device] = list(train.fit(network, data.to(torch.device(device)), recipe, 0, checkpoint))
    for on_cpu, on_gpu in zip(epochs["cpu"], epochs["cuda"]):
        assert on_gpu["loss"] == pytest.approx(on_cpu["loss"], rel=0.02)
        assert on_gpu["val_accuracy"] == pytest.approx(on_cpu["val_accuracy"], abs=0.05)  # of 150 images


def test_a_loss_that_is_not_finite_is_a_user_error_and_keeps_the_earlier_results(models, change):
    before = artifacts.weights("fnn").read_bytes(), (artifacts.training("fnn") / "metrics.json").read_bytes()
    change({"recipes.default.fnn": {"epochs": 8, "batch_size": 64, "learning_rate": 100.0, "weight_decay": 1.0}})
    with pytest.raises(
        UserError, match="^loss and val_loss: expected finite numbers, got .*; try a lower learning_rate$"
    ):
        train.main("fnn")
    assert (artifacts.weights("fnn").read_bytes(), (artifacts.training("fnn") / "metrics.json").read_bytes()) == before
    assert not list(artifacts.ROOT.rglob(".*.partial"))
