import pytest
import torch
from safetensors.torch import save_file

from stages import artifacts, networks, params
from stages.errors import UserError
from stages.params import Architecture
from tests.conftest import PROJECT


@pytest.fixture
def definitions(monkeypatch):
    """The networks in the project's params.yaml."""
    monkeypatch.chdir(PROJECT)
    return params.load_params().networks


@pytest.mark.parametrize(
    ("model", "parameters"), [("keras_fnn", 12_730), ("keras_cnn", 15_994), ("fnn", 109_770), ("cnn", 422_090)]
)
def test_the_projects_networks_have_these_parameter_counts(definitions, model, parameters):
    network = networks.build_network(definitions[model], class_count=10)
    assert networks.parameter_count(network) == parameters
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_the_layers_are_in_the_order_of_params_yaml():
    network = networks.build_network(
        Architecture(convolutions=[[4, 5], [6]], kernel_size=3, hidden=[7, 8], batch_norm=True),
        class_count=3,
        dropout=0.5,
    )
    assert [name for name, _ in network.named_children()] == [
        *("conv1", "conv1_norm", "conv1_relu"),
        *("conv2", "conv2_norm", "conv2_pool", "conv2_relu"),
        *("conv3", "conv3_norm", "conv3_pool", "conv3_relu"),
        "flatten",
        *("dense1", "dense1_norm", "dense1_relu", "dropout"),
        *("dense2", "dense2_norm", "dense2_relu"),
        "output",
    ]


def test_an_even_kernel_is_padded_at_the_bottom_and_the_right_like_keras():
    network = networks.build_network(Architecture(convolutions=[[1]], kernel_size=2), class_count=2)
    with torch.no_grad():
        network.conv1.weight.fill_(1)
        network.conv1.bias.fill_(0)
    images = torch.zeros(1, 1, 28, 28)
    images[0, 0, 0, 0] = 1  # in one window, as there is no padding at the top and the left
    images[0, 0, 27, 27] = 2  # in four windows
    convolved = network.conv1(network.conv1_pad(images))
    assert convolved.shape == (1, 1, 28, 28)
    assert convolved.nonzero()[:, 2:].tolist() == [[0, 0], [26, 26], [26, 27], [27, 26], [27, 27]]


def test_dropout_does_not_change_the_names_of_the_weights():
    layers = Architecture(hidden=[4], batch_norm=True)
    without, with_dropout = (networks.build_network(layers, 2, dropout) for dropout in (0.0, 0.5))
    assert without.state_dict().keys() == with_dropout.state_dict().keys()


def test_glorots_initial_weights_fill_their_interval_and_biases_are_0():
    layers = Architecture(convolutions=[[16]], kernel_size=3, hidden=[100])
    network = networks.build_network(layers, class_count=10, initialization="glorot")
    for layer, inputs, outputs in ((network.conv1, 9, 9 * 16), (network.dense1, 16 * 14 * 14, 100)):
        bound = (6 / (inputs + outputs)) ** 0.5
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()


def test_the_summary_of_layers_has_output_shapes_and_parameter_counts(definitions):
    lines = networks.summarize_layers(networks.build_network(definitions["cnn"], class_count=10)).splitlines()
    assert [line.split() for line in lines if "conv1_pool" in line] == [["conv1_pool", "[n,", "32,", "14,", "14]", "0"]]
    assert [line.split() for line in lines if "dense1 " in line] == [["dense1", "[n,", "128]", "401,536"]]
    assert lines[-1].split() == ["total", "422,090"]


def test_the_summary_of_layers_does_not_change_the_network(definitions):
    network = networks.build_network(definitions["fnn"], class_count=10).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    networks.summarize_layers(network)
    assert not network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_the_classifier_returns_labels_and_probabilities_of_raw_pixels(definitions):
    images = torch.randint(256, (5, 1, 28, 28), dtype=torch.uint8)
    classifier = networks.Classifier(networks.build_network(definitions["cnn"], class_count=10)).eval()
    labels, probabilities = classifier(images)
    assert labels.dtype == torch.int64
    assert labels.tolist() == probabilities.argmax(dim=1).tolist()
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(5))
    torch.testing.assert_close(probabilities, classifier.network(images / 255).softmax(dim=1))


def test_missing_weights_are_a_user_error(workspace):
    with pytest.raises(UserError, match="^artifacts/fnn/weights.safetensors: expected a file, got none; `dvc repro`"):
        networks.load_network(artifacts.weights("fnn"), Architecture(hidden=[4]), 10)


def test_corrupt_weights_are_a_user_error(tmp_path):
    (tmp_path / "weights").write_bytes(b"no weights")
    with pytest.raises(UserError, match="weights: expected the network's weights, got "):
        networks.load_network(tmp_path / "weights", Architecture(hidden=[4]), 10)


def test_weights_of_another_network_are_a_user_error(tmp_path):
    save_file(networks.build_network(Architecture(hidden=[5]), 10).state_dict(), tmp_path / "weights")
    with pytest.raises(UserError, match="weights: expected the network's weights, got .*size mismatch"):
        networks.load_network(tmp_path / "weights", Architecture(hidden=[4]), 10)
