import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import ablation, inference, serving, training, trials
from benchmarks.serving import Case, Turn
from benchmarks.training import NOTEBOOK, Training
from stages import networks, params, verify_int8
from tests.conftest import PROJECT


@pytest.fixture
def descriptions(monkeypatch):
    """The project's own networks."""
    monkeypatch.chdir(PROJECT)
    return params.load().networks


@pytest.mark.parametrize("model", ["fnn", "cnn"])
def test_our_network_is_the_notebooks_function(descriptions, model):
    theirs = training.NOTEBOOK_NETWORKS[model]()
    theirs(torch.rand(64, 1, 28, 28))  # moves the statistics of batch norm
    ours = networks.build(descriptions[model], classes=10, dropout=0.2)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    images = torch.rand(8, 1, 28, 28)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize(("model", "multiplications"), [("fnn", 109_184), ("cnn", 4_241_152)])
def test_a_training_image_costs_three_passes_of_two_operations_a_multiplication(descriptions, model, multiplications):
    # one pass forward and two backward, but for the first layer, whose input needs no gradient
    first = {"fnn": 784 * 128, "cnn": 28 * 28 * 32 * 9}[model]
    network = networks.build(descriptions[model], classes=10)
    assert training.flop_per_image(network) == 2 * (3 * multiplications - first)


def test_the_table_compares_means_with_the_notebooks():
    peak = 1e9
    rows = training.table(
        [
            Training("fnn", NOTEBOOK, 0, 10, accuracy=0.98, seconds=20.0, images=600, flop=2e9, peak=peak),
            Training("fnn", NOTEBOOK, 1, 10, accuracy=0.97, seconds=40.0, images=600, flop=2e9, peak=peak),
            Training("fnn", "default", 0, 3, accuracy=0.99, seconds=4.0, images=180, flop=1e9, peak=peak),
            Training("fnn", "default", 1, 3, accuracy=0.99, seconds=6.0, images=180, flop=1e9, peak=peak),
        ]
    ).splitlines()
    assert rows[0] == "Peak of this machine: 1 GFLOP/s in float32 matrix products"
    assert rows[-2] == "| fnn | notebook's loop | 2 | 10 | 97.50% ± 0.71% | 97.00% | 30.0 | 20 | 7% | 1.0 |"
    assert rows[-1] == "| fnn | default | 2 | 3 | 99.00% ± 0.00% | 99.00% | 5.0 | 36 | 20% | 6.0 |"


def test_no_recipe_has_the_name_of_the_notebooks_loop(monkeypatch):
    monkeypatch.chdir(PROJECT)
    assert NOTEBOOK not in params.load().recipes


def test_each_part_of_a_recipe_is_switched_off_alone(workspace):
    recipe = params.load().recipes["default"]["fnn"]
    recipes = ablation.variants(recipe)
    assert recipes.pop(ablation.NOTHING) == recipe
    assert {"warm_up", "momentum", "weight_decay", "distortion", "distortion.strokes"} <= set(recipes)
    assert recipes["distortion"].distortion is None
    assert recipes["distortion.strokes"].distortion.strokes == 0
    for part, variant in recipes.items():
        part = part.split(".")[0]
        assert getattr(variant, part) != getattr(recipe, part)
        assert variant.model_dump(exclude={part}) == recipe.model_dump(exclude={part})


def test_the_ablation_tells_what_a_part_brings_seed_by_seed():
    rows = ablation.table(
        [
            ablation.Training("fnn", ablation.NOTHING, 0, validation=0.99, test=0.98),
            ablation.Training("fnn", ablation.NOTHING, 1, validation=0.97, test=0.98),
            ablation.Training("fnn", "momentum", 0, validation=0.98, test=0.96),
            ablation.Training("fnn", "momentum", 1, validation=0.96, test=0.98),
        ]
    ).splitlines()
    assert rows[-2] == "| fnn | nothing | 2 | 98.00% | 98.00% |  |"
    assert rows[-1] == "| fnn | momentum | 2 | 97.00% | 97.00% | +1.00% ± 0.00% |"


def test_an_ablation_trains_and_tests_without_the_part(workspace):
    whole, without = (ablation.measure("fnn", part, 0) for part in (ablation.NOTHING, "momentum"))
    assert whole.validation > 0.8
    assert whole.test > 0.8
    assert without != replace(whole, without="momentum")


def test_trials_give_their_results_in_order_and_tell_what_is_left(capsys):
    assert trials.run(divmod, [(7, 2), (9, 3)], at_once=2) == [(3, 1), (3, 0)]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("(3, 1)  (1 of 2 done, about ")
    assert lines[1] == "(3, 0)  (2 of 2 done, about 00:00 left)"


def test_a_mistake_in_a_trial_is_told_as_it_is():
    with pytest.raises(ZeroDivisionError):
        trials.run(divmod, [(1, 0)])


def test_int8_stands_beside_float32(models, monkeypatch):
    monkeypatch.setattr(inference, "ROUNDS", 2)
    for model in models:
        verify_int8.main(model)
    header, rule, *rows = inference.table().splitlines()
    assert [row.split(" | ")[0] for row in rows] == [f"| {model}" for model in models]
    assert {line.count("|") for line in (header, rule, *rows)} == {9}


@pytest.mark.parametrize("kind", serving.FORMATS)
def test_the_load_counts_the_servers_answers(server, monkeypatch, kind):
    monkeypatch.chdir(PROJECT)
    case = Case(kind, batch=2, connections=3)
    content = serving.request(kind, np.zeros((2, 1, 28, 28), np.uint8))
    turn = serving.load("this server", int(server.address.split(":")[1]), case, content, seconds=0.2)
    assert turn.requests > 0
    assert turn.images == 2 * turn.requests
    assert 0 < turn.p50 <= turn.p99


def test_the_load_fails_with_the_server(server, monkeypatch):
    monkeypatch.chdir(PROJECT)
    content = serving.request("json", np.zeros((2, 1, 27, 28), np.uint8))
    with pytest.raises(subprocess.CalledProcessError):
        serving.load("this server", int(server.address.split(":")[1]), Case("json", 2, 1), content, seconds=0.2)


def test_serving_is_compared_with_the_runtime_and_the_best_peer():
    case, other = Case("json", 32, 8), Case("binary", 1, 1)
    turns = [
        *(Turn("onnxruntime", case, 100, 3200, 1, 2, 0) for _ in range(2)),
        Turn("this server", case, 80, 2000, 1, 3, 0.2),
        Turn("this server", case, 80, 2800, 2, 5, 0.3),
        Turn("kserve", case, 10, 300, 1, 2, 0.1),
        Turn("mlserver", case, 10, 600, 1, 2, 0.1),
        Turn("onnxruntime", other, 100, 100, 1, 2, 0),
        Turn("this server", other, 80, 50, 1, 3, 0.2),
    ]
    head, _, *rows = serving.table(turns).splitlines()
    assert head == (
        "| format | batch | connections | onnxruntime | this server | p50, p99 ms | kserve | mlserver "
        "| of onnxruntime | of the best peer |"
    )
    assert rows == [
        "| json | 32 | 8 | 3,200 | 2,400 | 1.50, 4.00 | 300 | 600 | 75% | 4.0x |",
        "| binary | 1 | 1 | 100 | 50 | 1.00, 3.00 |  |  | 50% |  |",
        "",
        "The load took at most 30% of a core.",
    ]
