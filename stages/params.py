"""Typed, validated parameters: the one reader of params.yaml, where a comment says what each of them is."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages import artifacts
from stages.errors import UserError, one_line

FILE = Path("params.yaml")
NAMED_SOURCES = ("torchvision", "bundled")

Name = Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]  # of a model: a folder, a part of a stage's name
Count = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Section(BaseModel):
    """A part of params.yaml: no unknown keys, no conversions behind the user's back, no infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, values: Any) -> Any:
        if isinstance(values, dict) and (unknown := [key for key in values if key not in cls.model_fields]):
            raise ValueError(f"has the unknown key {unknown[0]!r}; allowed: {', '.join(cls.model_fields)}")
        return values


class Data(Section):
    name: Annotated[str, Field(min_length=1)]
    sources: Annotated[list[str], Field(min_length=1)]
    sha256: dict[str, Sha256]
    classes: Annotated[list[str], Field(min_length=2)]
    validation: Annotated[float, Field(gt=0, le=0.5)]

    @field_validator("sources")
    @classmethod
    def _are_known(cls, sources: list[str]) -> list[str]:
        for source in sources:
            if source not in NAMED_SOURCES and "/" not in source:
                allowed = f"{', '.join(NAMED_SOURCES)}, or a directory, written with a slash"
                raise ValueError(f"has the unknown source {source!r}; allowed: {allowed}")
        return sources

    @field_validator("classes")
    @classmethod
    def _differ(cls, classes: list[str]) -> list[str]:
        if len(set(classes)) < len(classes):
            raise ValueError(f"is {classes}; allowed: names that differ")
        return classes

    @field_validator("sha256")
    @classmethod
    def _name_every_file(cls, sha256: dict[str, str]) -> dict[str, str]:
        if set(sha256) != set(artifacts.DATA_FILES):
            raise ValueError(f"has the keys {', '.join(sha256)}; allowed: exactly {', '.join(artifacts.DATA_FILES)}")
        return sha256


class Network(Section):
    convolutions: Annotated[list[Annotated[list[Count], Field(min_length=1)]], Field(max_length=4)] = []
    kernel_size: Count | None = None
    hidden: list[Count] = []
    batch_norm: bool = False

    @model_validator(mode="after")
    def _size_the_convolutions(self) -> Self:
        if self.convolutions and self.kernel_size is None:
            raise ValueError("has convolutions, but no kernel_size; allowed: 1 or more")
        return self


class Distortion(Section):
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    scale: Rate = 0.0
    shift: NotNegative = 0.0
    strokes: Share = 0.0


class Recipe(Section):
    epochs: Count
    batch_size: Annotated[int, Field(gt=2)]  # then no batch holds a single image, which batch norm cannot take
    learning_rate: Annotated[float, Field(gt=0)]
    warm_up: Annotated[float, Field(gt=0, lt=1)] | None = None
    initialization: Literal["pytorch", "glorot"] = "pytorch"
    momentum: Rate = 0.0
    weight_decay: NotNegative = 0.0
    label_smoothing: Rate = 0.0
    dropout: Rate = 0.0
    distortion: Distortion | None = None
    distort_until: Share = 1.0


class Int8(Section):
    calibration_images: Count
    accuracy_loss: Share


class Params(Section):
    models: Annotated[list[str], Field(min_length=1)]
    recipe: str
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: Annotated[int, Field(ge=0)]
    data: Data
    networks: dict[Name, Network]
    recipes: dict[str, dict[str, Recipe]]
    minimum_accuracy: dict[str, Share]
    robustness: Distortion
    tolerance: NotNegative
    int8: Int8
    licence: str

    @field_validator("networks")
    @classmethod
    def _leave_reserved_names(cls, networks: dict[str, Network]) -> dict[str, Network]:
        for network in networks:
            if network.endswith(artifacts.int8("")):
                raise ValueError(f"has {network!r}, which is the name of an int8 variant; allowed: others")
        for folder in (artifacts.DATA, artifacts.MODEL_REPOSITORY):
            if folder.name in networks:
                raise ValueError(
                    f"has {folder.name!r}, which is a folder of its own in {artifacts.ROOT}; allowed: others"
                )
        return networks

    @model_validator(mode="after")
    def _define_every_model(self) -> Self:
        if self.recipe not in self.recipes:
            raise ValueError(f"recipe is {self.recipe!r}; allowed: {', '.join(self.recipes)}")
        for model in self.models:
            self.require(model)
        return self

    def require(self, model: str) -> None:
        """Raise ValueError unless `model` has a network, a recipe and a minimum accuracy."""
        if model not in self.networks:
            raise ValueError(f"{model!r} is no model; allowed, for they are under networks: {', '.join(self.networks)}")
        if model not in self.recipes[self.recipe]:
            raise ValueError(f"recipes.{self.recipe}.{model} is missing: the model needs a recipe")
        if self.recipes[self.recipe][model].dropout and not self.networks[model].hidden:
            raise ValueError(
                f"recipes.{self.recipe}.{model}.dropout needs a hidden layer in networks.{model}; allowed: 0"
            )
        if model not in self.minimum_accuracy:
            raise ValueError(f"minimum_accuracy.{model} is missing: the model needs a floor")


def load(model: str | None = None) -> Params:
    """Read and validate params.yaml.

    Raises UserError: a line for every mistake, with key, value and what is allowed; also if `model` is not defined.
    """
    try:
        values = YAML(typ="safe").load(FILE)
        if not isinstance(values, dict):
            raise UserError(f"{FILE} holds {values!r}; allowed: keys with values")
        params = Params.model_validate(values)
        if model is not None:
            params.require(model)
        return params
    except OSError as error:
        raise UserError(f"{FILE}: {error.strerror}") from error
    except YAMLError as error:
        raise UserError(f"{FILE} is no YAML: {one_line(error)}") from error
    except ValidationError as error:
        raise UserError("\n".join(f"{FILE}: {_describe(mistake)}" for mistake in error.errors())) from error
    except ValueError as error:
        raise UserError(f"{FILE}: {error}") from error


def _describe(mistake: dict[str, Any]) -> str:
    parts = [part for part in mistake["loc"] if part != "[key]"]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
    match mistake["type"]:
        case "missing":
            return f"{key} is missing"
        case "value_error":
            return f"{key} {mistake['ctx']['error']}".strip()
        case _:
            return f"{key} is {mistake['input']!r}: {mistake['msg'][0].lower()}{mistake['msg'][1:]}"
