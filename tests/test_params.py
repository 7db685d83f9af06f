import pytest
from ruamel.yaml import YAML

from stages import params
from stages.errors import UserError


def test_the_projects_own_parameters_are_valid(workspace):
    assert params.load().models == ["fnn", "cnn"]


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        (
            "networks.fnn.hiden",
            [1],
            "networks.fnn has the unknown key 'hiden'; allowed: convolutions, kernel_size, hidden",
        ),
        ("recipes.default.fnn.epochs", "ten", "recipes.default.fnn.epochs is 'ten': input should be a valid integer"),
        ("recipes.default.fnn.epochs", "10", "recipes.default.fnn.epochs is '10': input should be a valid integer"),
        (
            "recipes.default.fnn.learning_rate",
            -0.1,
            "recipes.default.fnn.learning_rate is -0.1: input should be greater than 0",
        ),
        ("recipes.default.fnn.learning_rate", float("nan"), "learning_rate is nan: input should be a finite number"),
        ("recipes.default.cnn.dropout", 1.5, "recipes.default.cnn.dropout is 1.5: input should be less than 1"),
        ("recipes.default.cnn.warm_up", 1.0, "recipes.default.cnn.warm_up is 1.0: input should be less than 1"),
        ("recipes.default.cnn.initialization", "he", "is 'he': input should be 'pytorch' or 'glorot'"),
        (
            "networks.cnn.convolutions",
            [[32], []],
            "networks.cnn.convolutions[1] is []: list should have at least 1 item",
        ),
        (
            "models",
            ["fnn", "resnet"],
            "'resnet' is no model; allowed, for they are under networks: fnn, cnn, keras_fnn",
        ),
        ("data.classes", ["a", "a"], "data.classes is ['a', 'a']; allowed: names that differ"),
        ("networks.Big", {}, "networks.Big is 'Big': string should match pattern"),
        ("networks.data", {}, "networks has 'data', which is a folder of its own in artifacts; allowed: others"),
        ("networks.a_int8", {}, "networks has 'a_int8', which is the name of an int8 variant; allowed: others"),
        ("networks.cnn.convolutions", [[1]] * 5, "networks.cnn.convolutions is [[1], [1], [1], [1], [1]]: list should"),
        ("networks.cnn.kernel_size", None, "networks.cnn has convolutions, but no kernel_size; allowed: 1 or more"),
        ("networks.cnn.hidden", [], "recipes.default.cnn.dropout needs a hidden layer in networks.cnn; allowed: 0"),
        ("recipe", "quick", "recipe is 'quick'; allowed: default, fast, notebook"),
        (
            "data.sources",
            ["bundle"],
            "data.sources has the unknown source 'bundle'; allowed: torchvision, bundled, or a",
        ),
        ("data.sha256", {}, "data.sha256 has the keys ; allowed: exactly train-images-idx3-ubyte, train-labels"),
        ("threads", -1, "threads is -1: input should be greater than or equal to 0"),
        ("device", "gpu", "device is 'gpu': input should be 'auto', 'cpu', 'cuda' or 'mps'"),
    ],
)
def test_a_mistake_is_named_with_its_key_its_value_and_what_is_allowed(workspace, change, key, value, line):
    change({key: value})
    with pytest.raises(UserError) as mistake:
        params.load()
    assert str(mistake.value).startswith("params.yaml: ")
    assert line in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_a_missing_key_is_named(workspace):
    values = YAML().load(params.FILE)
    del values["seed"]
    YAML().dump(values, params.FILE)
    with pytest.raises(UserError, match="^params.yaml: seed is missing$"):
        params.load()


def test_every_mistake_has_a_line_of_its_own(workspace, change):
    change({"seed": -1, "tolerance": -1.0})
    with pytest.raises(UserError) as mistake:
        params.load()
    assert len(str(mistake.value).splitlines()) == 2


def test_a_model_needs_a_definition(workspace):
    with pytest.raises(UserError, match="'resnet' is no model"):
        params.load("resnet")


def test_a_model_needs_a_recipe(workspace):
    values = YAML().load(params.FILE)
    del values["recipes"]["default"]["cnn"]
    YAML().dump(values, params.FILE)
    with pytest.raises(UserError, match="recipes.default.cnn is missing"):
        params.load()


@pytest.mark.parametrize("text", ["models: [fnn", "seed: 1\nseed: 2\n", "- a\n- b\n", ""])
def test_what_is_no_mapping_of_parameters_gets_one_line(workspace, text):
    params.FILE.write_text(text)
    with pytest.raises(UserError, match="^params.yaml.*$"):
        params.load()


def test_a_missing_file_gets_one_line(workspace):
    params.FILE.unlink()
    with pytest.raises(UserError, match=r"^params.yaml: No such file or directory$"):
        params.load()
