import re

import pytest
from ruamel.yaml import YAML

from stages import artifacts, card, evaluate, params, verify, verify_int8


@pytest.fixture
def cards(built, monkeypatch) -> dict[str, str]:
    """The model cards of cnn and of its int8 variant, by name; the current folder is theirs."""
    monkeypatch.chdir(built)
    return {name: artifacts.model_card(name).read_text() for name in ("cnn", "cnn_int8")}


def front_matter(text: str) -> dict:
    return YAML(typ="safe").load(text.split("---\n")[1])


@pytest.mark.parametrize(
    ("name", "measured"), [("cnn", artifacts.evaluation("cnn")), ("cnn_int8", artifacts.verification_int8("cnn"))]
)
def test_a_model_card_states_the_measured_accuracies(cards, name, measured):
    expected, text = artifacts.read_json(measured), cards[name]
    (result,) = front_matter(text)["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": expected["accuracy"]}]
    interval = f"{expected['accuracy_low']:.2%} to {expected['accuracy_high']:.2%}"
    assert f"Test accuracy: {expected['accuracy']:.2%} (95 % interval {interval}), {expected['errors']} errors" in text
    assert expected["perturbed_accuracy"]
    for name, accuracy in expected["perturbed_accuracy"].items():
        assert f"{card.describe_perturbation(name, params.load_params().perturbations)} | {accuracy:.2%} |" in text


def test_the_front_matter_has_the_keys_of_hugging_face(cards):
    metadata = front_matter(cards["cnn"])
    assert metadata["license"] == "mit"
    assert metadata["library_name"] == "onnx"
    assert metadata["pipeline_tag"] == "image-classification"
    assert metadata["model-index"][0]["name"] == "cnn"


def test_a_model_card_states_recipe_and_digests(cards):
    parameters = params.load_params()
    recipe = parameters.recipes["default"]["cnn"]
    for text in cards.values():
        assert f"| learning_rate | {recipe.learning_rate} |" in text
        assert f"| augmentation.rotation | {recipe.augmentation.rotation} |" in text
        for digest in parameters.data.sha256.values():
            assert digest in text
    assert artifacts.sha256_digest(artifacts.onnx("cnn")) in cards["cnn"]
    assert artifacts.sha256_digest(artifacts.onnx("cnn_int8")) in cards["cnn_int8"]
    assert "quantized" in cards["cnn_int8"] and "quantized" not in cards["cnn"]


def test_special_characters_of_yaml_in_names_are_quoted(models, change):
    change({"data.name": "a: [b]", "license": "#1: 'x'", "perturbations": {}})
    for stage in (evaluate, verify, verify_int8, card):
        stage.main("fnn")
    metadata = front_matter(artifacts.model_card("fnn").read_text())
    assert metadata["license"] == "#1: 'x'"
    assert metadata["model-index"][0]["results"][0]["dataset"]["name"] == "a: [b]"


def test_the_example_in_a_model_card_runs(cards, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", cards["cnn_int8"], flags=re.DOTALL)
    monkeypatch.chdir(artifacts.model_folder("cnn_int8"))
    names: dict = {}
    exec(example, names)
    assert names["label"].shape == (1,)
