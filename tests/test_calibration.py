import pytest
import torch
from scipy.stats import entropy
from torch.nn.functional import cross_entropy

from stages import artifacts, calibration, evaluate, networks, params, train, verify_int8
from stages.dataset import Split


def random_logits(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits of three classes, and labels drawn with their probabilities: these are perfectly calibrated."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, 3, generator=generator)
    return logits, logits.softmax(dim=1).multinomial(1, generator=generator).flatten()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_fitted_temperature_undoes_the_one_that_spoiled_calibrated_logits(temperature):
    logits, labels = random_logits(20_000)
    fitted = calibration.fit_temperature(logits * temperature, labels)
    assert fitted == pytest.approx(temperature, rel=0.03)


def test_the_fitted_temperature_has_the_lowest_loss():
    logits, labels = random_logits(100)
    fitted = calibration.fit_temperature(logits, labels)
    losses = [cross_entropy(logits / (fitted * factor), labels).item() for factor in (0.99, 1, 1.01)]
    assert losses[1] == min(losses)


def test_the_temperature_is_bounded_if_every_prediction_is_correct():
    logits = torch.eye(3)
    fitted = calibration.fit_temperature(logits, logits.argmax(dim=1))
    assert fitted == pytest.approx(1 / calibration.MAX_TEMPERATURE, rel=0.01)


def test_dividing_the_logits_changes_the_probabilities_but_no_label():
    network = torch.nn.Sequential(torch.nn.Linear(4, 3))
    inputs = torch.randn(50, 4)
    before = network(inputs)
    calibration.divide_logits(network, 0.5)
    torch.testing.assert_close(network(inputs), before / 0.5)
    assert torch.equal(network(inputs).argmax(dim=1), before.argmax(dim=1))


def test_a_trained_network_has_the_optimal_temperature_on_its_validation_split(workspace):
    train.main("fnn")
    parameters = params.load_params("fnn")
    _, data = train.prepare_training("fnn", parameters, parameters.recipes["default"]["fnn"], parameters.seed)
    network = networks.load_network(artifacts.weights("fnn"), parameters.networks["fnn"], 10)
    logits = networks.predict_logits(network, data.validation.images)
    assert calibration.fit_temperature(logits, data.validation.labels) == pytest.approx(1, abs=1e-3)
    assert artifacts.read_json(artifacts.calibration("fnn"))["temperature"] != pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("labelled_fraction", [0.5, 0.9, 1])
def test_a_fraction_of_the_validation_images_has_at_most_the_maximum_entropy(labelled_fraction):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 3))
    validation = Split(torch.randint(256, (200, 1, 28, 28), dtype=torch.uint8), torch.arange(200) % 3)
    maximum = calibration.calibrate(network, validation, labelled_fraction)["max_entropy"]
    uncertainty = entropy(networks.predict_logits(network, validation.images).softmax(dim=1).double(), axis=1)
    assert (uncertainty <= maximum).mean() == pytest.approx(labelled_fraction, abs=0.006)


def test_the_int8_variant_states_its_own_calibration_error(models):
    evaluate.main("fnn")
    verify_int8.main("fnn")
    float32 = artifacts.read_json(artifacts.evaluation("fnn"))["calibration_error"]
    int8 = artifacts.read_json(artifacts.verification_int8("fnn"))["calibration_error"]
    assert 0 < abs(int8 - float32) < 0.02
    compared = artifacts.read_json(artifacts.metrics_int8("fnn"))["fnn_int8"]
    assert compared["calibration_error"] == int8


def test_the_reliability_diagram_has_the_same_bytes_in_each_run(tmp_path):
    logits, labels = random_logits(500)
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    contents = []
    for name in ("a.png", "b.png"):
        evaluate.draw_reliability(tmp_path / name, confidence.numpy(), (predicted == labels).numpy())
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
