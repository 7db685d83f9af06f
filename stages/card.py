"""Write the model cards and bills of materials of one model and of its int8 variant.

The cards have the layout of Hugging Face's.
"""

import json
from pathlib import Path
from typing import Any

import onnx
from jinja2 import Environment, StrictUndefined

from stages import artifacts, bom, command, model_repository, params
from stages.params import Architecture, PerturbationLimits

TEMPLATE = Path(__file__).with_name("card.md")
ENVIRONMENT = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)


def main(model: str) -> None:
    """Write the model cards and bills of materials of MODEL and its int8 variant into the model repository."""
    parameters = params.load_params(model)
    evaluation = artifacts.read_json(artifacts.evaluation(model))
    verification = artifacts.read_json(artifacts.verification(model))
    int8 = artifacts.read_json(artifacts.verification_int8(model))
    facts = dict(parameters) | {
        "model": model,
        "layers": describe_layers(parameters.networks[model], len(parameters.data.classes)),
        "recipe_name": parameters.recipe,
        "recipe": flatten_keys(parameters.recipes[parameters.recipe][model].model_dump(exclude_defaults=True)),
        "parameter_count": evaluation["parameters"],
        "max_entropy": evaluation["max_entropy"],
        "labelled_fraction": evaluation["labelled_fraction"],
    }
    variants = {
        model: {"results": evaluation, "verification": verification, "is_int8": False},
        artifacts.int8_name(model): {"results": int8, "float32": evaluation, "is_int8": True},
    }
    for name, results in variants.items():
        write_card(name, facts | results)
        bom.write_bom(name, facts | results)


def write_card(name: str, facts: dict[str, Any]) -> None:
    """Render the template with the facts, and with the properties of the model's files."""
    file = artifacts.require_file(artifacts.onnx(name))
    onnx_model, accuracies = onnx.load(file), facts["results"]["perturbed_accuracy"]
    metadata = model_repository.read_metadata(onnx_model)
    card = ENVIRONMENT.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        facts,
        name=name,
        bytes=file.stat().st_size,
        opset=onnx_model.opset_import[0].version,
        ir_version=onnx_model.ir_version,
        frameworks=", ".join(" ".join(each) for each in json.loads(metadata["frameworks"]).items()),
        quantization=metadata.get("quantization"),
        perturbed_accuracies=[
            (describe_perturbation(name, facts["perturbations"]), accuracy) for name, accuracy in accuracies.items()
        ],
        digests=artifacts.require_file(artifacts.checksums(name)).read_text(encoding="utf-8"),
    )
    artifacts.write_text(artifacts.model_card(name), card)
    print(artifacts.model_card(name))


def describe_layers(architecture: Architecture, class_count: int) -> str:
    """Return the layers as a sentence."""
    size, steps = architecture.kernel_size, []
    for block in architecture.convolutions:
        steps += [f"convolution {size} x {size} to {channels} channels" for channels in block] + ["max-pool 2 x 2"]
    steps += [f"dense {width}" for width in (*architecture.hidden, class_count)]
    between = "batch norm and ReLU" if architecture.batch_norm else "ReLU"
    return f"{', '.join(steps)}, softmax; {between} after each convolution and dense layer but the last"


def describe_perturbation(name: str, limits: PerturbationLimits) -> str:
    """Return a perturbation of the test images, with its limit, in words."""
    part = "" if limits.strokes == 1 else f"{limits.strokes:.0%} of "
    return {
        "rotation": f"rotated by up to {limits.rotation:g} degrees",
        "scale": f"scaled to between {1 / (1 + limits.scale):.0%} and {1 / (1 - limits.scale):.0%} of the size",
        "shift": f"shifted by up to {limits.shift:g} pixels",
        "thin_strokes": f"strokes thinned by {part}an erosion of 2 x 2 pixels",
        "thick_strokes": f"strokes thickened by {part}a dilation of 2 x 2 pixels",
    }[name]


def flatten_keys(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested sections by their dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten_keys(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


if __name__ == "__main__":
    command.run(main, "model")
