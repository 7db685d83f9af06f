import re

import pytest
from ruamel.yaml import YAML

from stages import artifacts, card, evaluate, params, verify, verify_int8


@pytest.fixture
def cards(models) -> dict[str, str]:
    """The cards of a model and its int8 variant, by their names."""
    for stage in (evaluate, verify, verify_int8, card):
        stage.main("cnn")
    return {name: artifacts.card(name).read_text() for name in ("cnn", "cnn_int8")}


def front_matter(text: str) -> dict:
    return YAML(typ="safe").load(text.split("---\n")[1])


@pytest.mark.parametrize(
    ("name", "measured"), [("cnn", artifacts.evaluation("cnn")), ("cnn_int8", artifacts.verification_int8("cnn"))]
)
def test_the_figures_are_those_that_were_measured(cards, name, measured):
    expected, text = artifacts.read_json(measured), cards[name]
    (result,) = front_matter(text)["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": expected["accuracy"]}]
    interval = f"{expected['accuracy_low']:.2%} to {expected['accuracy_high']:.2%}"
    assert f"{expected['accuracy']:.2%} are answered right (95 % interval {interval})" in text
    for way, accuracy in expected["robustness"].items():
        assert f"{card.describe(way, params.load().robustness)} | {accuracy:.2%} |" in text


def test_hugging_face_finds_what_it_looks_for(cards):
    metadata = front_matter(cards["cnn"])
    assert metadata["license"] == "mit"
    assert metadata["library_name"] == "onnx"
    assert metadata["pipeline_tag"] == "image-classification"
    assert metadata["model-index"][0]["name"] == "cnn"


def test_the_card_tells_recipe_digests_and_data(cards):
    parameters = params.load()
    recipe = parameters.recipes["default"]["cnn"]
    for text in cards.values():
        assert f"| learning_rate | {recipe.learning_rate} |" in text
        assert f"| distortion.rotation | {recipe.distortion.rotation} |" in text
        for digest in parameters.data.sha256.values():
            assert digest in text
    assert artifacts.sha256(artifacts.onnx("cnn")) in cards["cnn"]
    assert artifacts.sha256(artifacts.onnx("cnn_int8")) in cards["cnn_int8"]
    assert "quantized" in cards["cnn_int8"] and "quantized" not in cards["cnn"]


def test_names_may_hold_what_yaml_reserves(models, change):
    change({"data.name": "a: [b]", "licence": "#1: 'x'", "robustness": {}})
    for stage in (evaluate, verify, verify_int8, card):
        stage.main("fnn")
    metadata = front_matter(artifacts.card("fnn").read_text())
    assert metadata["license"] == "#1: 'x'"
    assert metadata["model-index"][0]["results"][0]["dataset"]["name"] == "a: [b]"


def test_the_example_on_the_card_runs(cards, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", cards["cnn_int8"], flags=re.DOTALL)
    monkeypatch.chdir(artifacts.card("cnn_int8").parent)
    names: dict = {}
    exec(example, names)
    assert names["label"].shape == (1,)
