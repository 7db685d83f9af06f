import pytest
import torch
from safetensors.torch import save_file

from stages import artifacts, networks, params
from stages.errors import UserError
from stages.params import Network
from tests.conftest import PROJECT


@pytest.fixture
def definitions(monkeypatch):
    """The project's own networks."""
    monkeypatch.chdir(PROJECT)
    return params.load().networks


@pytest.mark.parametrize(
    ("model", "parameters"), [("keras_fnn", 12_730), ("keras_cnn", 15_994), ("fnn", 109_770), ("cnn", 422_090)]
)
def test_the_notebooks_networks_have_its_parameter_counts(definitions, model, parameters):
    network = networks.build(definitions[model], classes=10)
    assert networks.parameter_count(network) == parameters
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_layers_follow_the_description():
    network = networks.build(
        Network(convolutions=[[4, 5], [6]], kernel_size=3, hidden=[7, 8], batch_norm=True), classes=3, dropout=0.5
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


def test_an_even_kernel_pads_at_the_bottom_and_the_right_as_keras_does():
    network = networks.build(Network(convolutions=[[1]], kernel_size=2), classes=2)
    with torch.no_grad():
        network.conv1.weight.fill_(1)
        network.conv1.bias.fill_(0)
    images = torch.zeros(1, 1, 28, 28)
    images[0, 0, 0, 0] = 1  # seen by no window but the one that starts there
    images[0, 0, 27, 27] = 2  # seen by the four windows around it
    convolved = network.conv1(network.conv1_pad(images))
    assert convolved.shape == (1, 1, 28, 28)
    assert convolved.nonzero()[:, 2:].tolist() == [[0, 0], [26, 26], [26, 27], [27, 26], [27, 27]]


def test_dropout_does_not_change_the_names_of_the_weights():
    description = Network(hidden=[4], batch_norm=True)
    assert networks.build(description, 2).state_dict().keys() == networks.build(description, 2, 0.5).state_dict().keys()


def test_glorots_weights_fill_their_interval_and_biases_are_zero():
    description = Network(convolutions=[[16]], kernel_size=3, hidden=[100])
    network = networks.build(description, classes=10, initialization="glorot")
    for layer, inputs, outputs in ((network.conv1, 9, 9 * 16), (network.dense1, 16 * 14 * 14, 100)):
        bound = (6 / (inputs + outputs)) ** 0.5
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()


def test_a_description_shows_shapes_and_parameter_counts(definitions):
    lines = networks.describe(networks.build(definitions["cnn"], classes=10)).splitlines()
    assert [line.split() for line in lines if "conv1_pool" in line] == [["conv1_pool", "[n,", "32,", "14,", "14]", "0"]]
    assert [line.split() for line in lines if "dense1 " in line] == [["dense1", "[n,", "128]", "401,536"]]
    assert lines[-1].split() == ["total", "422,090"]


def test_describing_leaves_the_network_as_it_was(definitions):
    network = networks.build(definitions["fnn"], classes=10).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    networks.describe(network)
    assert not network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_the_classifier_answers_raw_pixels_with_labels_and_probabilities(definitions):
    images = torch.randint(256, (5, 1, 28, 28), dtype=torch.uint8)
    classifier = networks.Classifier(networks.build(definitions["cnn"], classes=10)).eval()
    labels, probabilities = classifier(images)
    assert labels.dtype == torch.int64
    assert labels.tolist() == probabilities.argmax(dim=1).tolist()
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(5))
    torch.testing.assert_close(probabilities, classifier.network(images / 255).softmax(dim=1))


def test_missing_weights_are_named(workspace):
    with pytest.raises(UserError, match="^artifacts/fnn/weights.safetensors is missing; `dvc repro` makes it$"):
        networks.load(artifacts.weights("fnn"), Network(hidden=[4]), 10)


def test_corrupt_weights_are_named(workspace, tmp_path):
    (tmp_path / "weights").write_bytes(b"no weights")
    with pytest.raises(UserError, match="weights does not hold this network's weights: "):
        networks.load(tmp_path / "weights", Network(hidden=[4]), 10)


def test_weights_of_another_network_are_refused(tmp_path):
    save_file(networks.build(Network(hidden=[5]), 10).state_dict(), tmp_path / "weights")
    with pytest.raises(UserError, match="weights does not hold this network's weights: .*size mismatch"):
        networks.load(tmp_path / "weights", Network(hidden=[4]), 10)
