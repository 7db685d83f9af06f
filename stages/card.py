"""Write the cards of one model and of its int8 variant, laid out as Hugging Face's model cards."""

import json
from pathlib import Path
from typing import Any

import onnx
from jinja2 import Environment, StrictUndefined

from stages import artifacts, command, params, repository
from stages.params import Distortion, Network

TEMPLATE = Path(__file__).with_name("card.md")
ENVIRONMENT = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)


def main(model: str) -> None:
    """Write the cards of MODEL and of its int8 variant beside their files in the model repository."""
    parameters = params.load(model)
    evaluation = artifacts.read_json(artifacts.evaluation(model))
    verification = artifacts.read_json(artifacts.verification(model))
    int8 = artifacts.read_json(artifacts.verification_int8(model))
    facts = dict(parameters) | {
        "model": model,
        "layers": layers(parameters.networks[model], len(parameters.data.classes)),
        "recipe_name": parameters.recipe,
        "recipe": flatten(parameters.recipes[parameters.recipe][model].model_dump(exclude_defaults=True)),
        "weights": evaluation["parameters"],
    }
    write(model, facts | {"measured": evaluation, "verification": verification, "is_int8": False})
    write(artifacts.int8(model), facts | {"measured": int8, "float32": evaluation, "is_int8": True})


def write(name: str, facts: dict[str, Any]) -> None:
    """Fill the template with the facts, and with what the files of the model `name` tell."""
    file = artifacts.require(artifacts.onnx(name))
    model, limits = onnx.load(file), facts["robustness"]
    metadata = repository.metadata(model)
    card = ENVIRONMENT.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        facts,
        name=name,
        bytes=file.stat().st_size,
        opset=model.opset_import[0].version,
        ir_version=model.ir_version,
        frameworks=", ".join(" ".join(each) for each in json.loads(metadata["frameworks"]).items()),
        quantization=metadata.get("quantization"),
        distortions=[(describe(way, limits), share) for way, share in facts["measured"]["robustness"].items()],
        digests=artifacts.require(artifacts.checksums(name)).read_text(encoding="utf-8"),
    )
    artifacts.write_text(artifacts.card(name), card)
    print(artifacts.card(name))


def layers(network: Network, classes: int) -> str:
    """Tell a network's layers in words."""
    size, steps = network.kernel_size, []
    for block in network.convolutions:
        steps += [f"convolution {size} x {size} to {channels} channels" for channels in block] + ["max-pool 2 x 2"]
    steps += [f"dense {width}" for width in (*network.hidden, classes)]
    between = "batch norm and ReLU" if network.batch_norm else "ReLU"
    return f"{', '.join(steps)}, softmax; {between} after each convolution and dense layer but the last"


def describe(way: str, limits: Distortion) -> str:
    """Tell in words how far the test images were distorted in one way."""
    share = "" if limits.strokes == 1 else f"{limits.strokes:.0%} of "
    return {
        "rotation": f"rotated by up to {limits.rotation:g} degrees",
        "scale": f"scaled to between {1 / (1 + limits.scale):.0%} and {1 / (1 - limits.scale):.0%} of the size",
        "shift": f"shifted by up to {limits.shift:g} pixels",
        "thin_strokes": f"strokes thinned by {share}an erosion of 2 x 2 pixels",
        "thick_strokes": f"strokes thickened by {share}a dilation of 2 x 2 pixels",
    }[way]


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested sections by their dotted names."""
    flat = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


if __name__ == "__main__":
    command.run(main, "model")
