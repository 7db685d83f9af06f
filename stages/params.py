"""Typed, validated parameters. The comments in params.yaml say what each of them means."""

import itertools
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages import artifacts
from stages.errors import UserError, one_line
from stages.images import IMAGE_SHAPE

FILE = Path("params.yaml")
NAMED_SOURCES = ("torchvision", "bundled")
MAX_WEIGHTS = 100_000_000  # of a network: 400 MB, and three times as much while it is trained
INT8_SUFFIX = artifacts.int8_name("")
RESERVED_NAMES = (artifacts.DATA.name, artifacts.MODEL_REPOSITORY.name)  # folders beside those of the models
RENAMED_KEYS = {  # old names, in the params.yaml of earlier versions
    "accuracy_loss": "max_accuracy_drop",
    "distort_until": "augment_until",
    "distortion": "augmentation",
    "licence": "license",
    "max_accuracy_loss": "max_accuracy_drop",
    "robustness": "perturbations",
    "validation": "validation_fraction",
    "warm_up": "warmup_fraction",
}
BOUNDS = {  # pydantic's error types
    "greater_than": "x > {gt}",
    "greater_than_equal": "x >= {ge}",
    "less_than": "x < {lt}",
    "less_than_equal": "x <= {le}",
}

# json_schema_extra is for editors only; the validators below enforce the same rules.
ModelName = Annotated[
    str,
    Field(
        pattern="^[a-z][a-z0-9_]{0,63}$",
        json_schema_extra={"not": {"pattern": f"^({'|'.join(RESERVED_NAMES)})$|{INT8_SUFFIX}$"}},
    ),
]
ClassName = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]{1,64}$")]  # a line of labels.txt
Source = Annotated[str, Field(json_schema_extra={"pattern": f"^({'|'.join(NAMED_SOURCES)})$|/"})]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Width = Annotated[int, Field(gt=0, le=16_384)]
Block = Annotated[list[Width], Field(min_length=1, max_length=16)]
Label = Annotated[int, Field(ge=0, lt=256)]  # as in IDX files
Fraction = Annotated[float, Field(ge=0, le=1)]
FractionBelowOne = Annotated[float, Field(ge=0, lt=1)]
UNIQUE: dict[str, Any] = {"uniqueItems": True}
EVERY_DATA_FILE: dict[str, Any] = {"required": [*artifacts.DATA_FILES], "maxProperties": len(artifacts.DATA_FILES)}


class Section(BaseModel):
    """A section of params.yaml: unknown keys, implicit conversions and infinite numbers are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown_keys(cls, values: Any) -> Any:
        for key in values if isinstance(values, dict) else ():
            if key not in cls.model_fields:
                if RENAMED_KEYS.get(key) in cls.model_fields:
                    raise ValueError(f"expected {RENAMED_KEYS[key]}, the new name of this key, got {key}")
                raise ValueError(f"expected the keys {', '.join(cls.model_fields)}, got {key!r}")
        return values


SectionType = TypeVar("SectionType", bound=Section)


def _reject_duplicates(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError(f"expected distinct names, got {names}")
    return names


class Data(Section):
    """The data set: where it comes from, its digests and its classes."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    license: Annotated[str, Field(min_length=1, max_length=64)]
    sources: Annotated[list[Source], Field(min_length=1)]
    sha256: Annotated[dict[str, Sha256], Field(json_schema_extra=EVERY_DATA_FILE)]
    classes: Annotated[list[ClassName], Field(min_length=2, max_length=256, json_schema_extra=UNIQUE)]
    validation_fraction: Annotated[float, Field(gt=0, le=0.5)]

    _distinct = field_validator("classes")(_reject_duplicates)

    @field_validator("sources")
    @classmethod
    def _reject_unknown_sources(cls, sources: list[str]) -> list[str]:
        for source in sources:
            if source not in NAMED_SOURCES and "/" not in source:
                expected = f"{', '.join(NAMED_SOURCES)} or a directory with a slash, such as ./my-data"
                raise ValueError(f"expected {expected}, got {source!r}")
        return sources

    @field_validator("sha256")
    @classmethod
    def _require_every_file(cls, sha256: dict[str, str]) -> dict[str, str]:
        if set(sha256) != set(artifacts.DATA_FILES):
            raise ValueError(f"expected exactly the keys {', '.join(artifacts.DATA_FILES)}, got {', '.join(sha256)}")
        return sha256

    def check_labels(self, name: str, labels: NDArray[np.uint8]) -> None:
        """Raise UserError unless every label of the data file `name` has a class."""
        if labels.max(initial=0) >= len(self.classes):
            expected = (
                f"labels from 0 to {len(self.classes) - 1}, as data.classes in {FILE} has {len(self.classes)} names"
            )
            raise UserError(f"{name}: expected {expected}, got {labels.max()}")


class Architecture(Section):
    """The layers of a network: blocks of convolutions, each ended by a 2 x 2 max-pool, then dense layers."""

    model_config = ConfigDict(json_schema_extra={"dependentRequired": {"convolutions": ["kernel_size"]}})

    convolutions: Annotated[list[Block], Field(max_length=4)] = []
    kernel_size: Annotated[int, Field(gt=0, lt=IMAGE_SHAPE[1])] = 0
    hidden: Annotated[list[Width], Field(max_length=16)] = []
    batch_norm: bool = False

    @model_validator(mode="after")
    def _limit_the_size(self) -> Self:
        if self.convolutions and not self.kernel_size:
            raise ValueError("kernel_size: expected 1 or more, as there are convolutions, got 0")
        if self.weight_count() > MAX_WEIGHTS:
            raise ValueError(f"expected at most {MAX_WEIGHTS:,} weights, got {self.weight_count():,}")
        return self

    def weight_count(self) -> int:
        """Return the number of weights in the convolutions and the hidden layers."""
        blocks = self.convolutions
        channels, height, width = IMAGE_SHAPE
        layers = itertools.pairwise([channels, *itertools.chain(*blocks)])
        convolutions = sum(inputs * outputs * self.kernel_size**2 for inputs, outputs in layers)
        features = blocks[-1][-1] * (height >> len(blocks)) * (width >> len(blocks)) if blocks else height * width
        dense = sum(inputs * outputs for inputs, outputs in itertools.pairwise([features, *self.hidden]))
        return convolutions + dense


class PerturbationLimits(Section):
    """The maximum of each perturbation of an image; params.yaml states the units."""

    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    scale: FractionBelowOne = 0.0
    shift: Annotated[float, Field(ge=0, le=IMAGE_SHAPE[1])] = 0.0
    strokes: Fraction = 0.0


class OutlierSources(Section):
    """What outliers are made from, besides shapes and all training images."""

    characters: Annotated[str, Field(pattern=r"^[!-~]*$")] = ""
    quarter_turn: Annotated[list[Label], Field(json_schema_extra=UNIQUE)] = []


class Outliers(Section):
    """How many outliers a batch gets, and how much they count."""

    fraction: Annotated[float, Field(gt=0, le=1)]
    weight: Annotated[float, Field(gt=0, le=100)]


class Recipe(Section):
    """The hyperparameters of a training."""

    epochs: Annotated[int, Field(gt=0, le=10_000)]
    batch_size: Annotated[int, Field(gt=2, le=16_384)]  # 2 may leave a batch of one image, which batch norm rejects
    learning_rate: Annotated[float, Field(gt=0, le=100)]
    warmup_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    initialization: Literal["pytorch", "glorot"] = "pytorch"
    momentum: FractionBelowOne = 0.0
    weight_decay: Fraction = 0.0
    label_smoothing: FractionBelowOne = 0.0
    dropout: FractionBelowOne = 0.0
    augmentation: PerturbationLimits | None = None
    augment_until: Fraction = 1.0
    outliers: Outliers | None = None
    precision: Literal["float32", "bfloat16"] = "float32"


class Int8(Section):
    """The quantization to int8, and its limit."""

    calibration_images: Annotated[int, Field(gt=0, le=100_000)]
    max_accuracy_drop: Fraction


class Params(Section):
    """All of params.yaml."""

    models: Annotated[list[str], Field(min_length=1, json_schema_extra=UNIQUE)]
    recipe: str
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: Annotated[int, Field(ge=0, le=256)]
    data: Data
    outlier_sources: OutlierSources
    networks: Annotated[dict[ModelName, Architecture], Field(json_schema_extra={"additionalProperties": False})]
    recipes: dict[str, dict[str, Recipe]]
    minimum_accuracy: dict[str, Fraction]
    perturbations: PerturbationLimits
    labelled_fraction: Annotated[float, Field(gt=0, le=1)]
    tolerance: Fraction
    int8: Int8
    license: Annotated[str, Field(min_length=1, max_length=64)]

    _distinct = field_validator("models")(_reject_duplicates)

    @field_validator("networks")
    @classmethod
    def _reject_reserved_names(cls, networks: dict[str, Architecture]) -> dict[str, Architecture]:
        for name in networks:
            if name.endswith(INT8_SUFFIX) or name in RESERVED_NAMES:
                reserved = f"other than {', '.join(RESERVED_NAMES)} and *{INT8_SUFFIX}, which are reserved"
                raise ValueError(f"expected a name {reserved}, got {name!r}")
        return networks

    @model_validator(mode="after")
    def _require_every_model(self) -> Self:
        if self.recipe not in self.recipes:
            raise ValueError(f"recipe: expected {' or '.join(self.recipes)}, got {self.recipe!r}")
        for model in self.models:
            self.require_model(model)
        return self

    def require_model(self, model: str) -> None:
        """Raise ValueError unless `model` has a network, a recipe and a minimum accuracy."""
        if model not in self.networks:
            raise ValueError(f"models: expected names under networks ({', '.join(self.networks)}), got {model!r}")
        recipes, key = self.recipes[self.recipe], f"recipes.{self.recipe}.{model}"
        if model not in recipes:
            raise ValueError(f"{key}: expected the model's recipe, got none; {self.recipe} has {', '.join(recipes)}")
        if recipes[model].dropout and not self.networks[model].hidden:
            raise ValueError(
                f"{key}.dropout: expected 0, as networks.{model} has no hidden layer, got {recipes[model].dropout}"
            )
        if model not in self.minimum_accuracy:
            raise ValueError(f"minimum_accuracy.{model}: expected a number from 0 to 1, got none")


def load_params(model: str | None = None) -> Params:
    """Read and validate params.yaml.

    Raises UserError with a line for each mistake, or if `model` is given and not defined.
    """
    params = validate(Params, read_yaml(FILE), FILE)
    if model is not None:
        try:
            params.require_model(model)
        except ValueError as error:
            raise UserError(f"{FILE}: {error}") from error
    return params


def read_yaml(file: Path) -> dict[str, Any]:
    """Return the content of a YAML file. Raises UserError if it is missing or no mapping."""
    try:
        values = YAML(typ="safe").load(file)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from error
    except (YAMLError, ValueError, RecursionError) as error:  # ValueError: such as a date with an impossible day
        raise UserError(f"{file}: expected YAML, got: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected a mapping of parameters, got {values!r}")
    return values


def validate(kind: type[SectionType], values: dict[str, Any], file: Path) -> SectionType:
    """Return the parameters in the content of a file. Raises UserError with a line for each mistake."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(f"{file}: {_error_line(mistake)}" for mistake in error.errors())) from error


def _error_line(mistake: ErrorDetails) -> str:
    """Return `key: expected …, got …`."""
    parts = [part for part in mistake["loc"] if part != "[key]"]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
    kind, context = mistake["type"], mistake.get("ctx", {})
    if kind == "value_error":
        return f"{key}: {context['error']}" if key else str(context["error"])
    if kind == "missing":
        return f"{key}: expected a value, got none"
    if kind in BOUNDS:
        return f"{key}: expected {BOUNDS[kind].format(**context)}, got {mistake['input']!r}"
    expected = mistake["msg"].removeprefix("Input should be ")
    return f"{key}: expected {expected[0].lower()}{expected[1:]}, got {mistake['input']!r}"
