"""The search space of hyperparameters: search.yaml, typed and validated."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, cast

from optuna import Trial
from pydantic import Field, model_validator

from stages import params
from stages.errors import UserError
from stages.params import Params, Section

FILE = Path("search.yaml")
Number = int | float
Value = bool | int | float | str


class Dimension(Section):
    """The values that a parameter may have: numbers from `low` to `high`, integers if both are, or one of `choices`."""

    low: Number | None = None
    high: Number | None = None
    step: Annotated[Number, Field(gt=0)] | None = None
    log: bool = False  # sample on a logarithmic scale
    choices: Annotated[list[Value], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _require_values(self) -> Self:
        if self.choices is not None:
            if self.model_fields_set != {"choices"}:
                raise ValueError("expected either choices or low and high, got both")
        elif self.low is None or self.high is None or self.low > self.high:
            raise ValueError(f"expected choices or low <= high, got low {self.low} and high {self.high}")
        elif self.log and (self.low <= 0 or self.step):
            raise ValueError("expected low > 0 and no step, as log is true")
        elif self.is_integer() and isinstance(self.step, float):
            raise ValueError(f"expected an integer step, as low and high are integers, got {self.step}")
        return self

    def is_integer(self) -> bool:
        """Say whether the parameter has integers from `low` to `high`."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def suggest(self, trial: Trial, key: str) -> Value:
        """Return a trial's value of the parameter with this key."""
        if self.choices is not None:
            return cast(Value, trial.suggest_categorical(key, self.choices))
        assert self.low is not None and self.high is not None
        if self.is_integer():
            return trial.suggest_int(key, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)

    def contains(self, value: object) -> bool:
        """Say whether the parameter may have this value."""
        if self.choices is not None:
            return value in self.choices
        assert self.low is not None and self.high is not None
        return isinstance(value, int | float) and self.low <= value <= self.high

    def extremes(self) -> list[Value]:
        """Return the values that have to be valid, so that all are."""
        return self.choices or [value for value in (self.low, self.high) if value is not None]


class Search(Section):
    """All of search.yaml."""

    model: str
    sampler: Literal["tpe", "gp", "random"]
    pruner: Literal["median", "hyperband", "none"]
    space: Annotated[dict[str, Dimension], Field(min_length=1)]


def load_search() -> Search:
    """Read search.yaml. Raises UserError with a line for each mistake, or if params.yaml does not allow a value."""
    search = params.validate(Search, params.read_yaml(FILE), FILE)
    recipe = params.load_params(search.model).recipe
    committed = params.read_yaml(params.FILE)
    sections = (f"recipes.{recipe}.{search.model}", f"networks.{search.model}")  # on which the training depends
    for key, dimension in search.space.items():
        if not key.startswith(tuple(f"{section}." for section in sections)):
            raise UserError(f"{FILE}: space.{key}: expected a key of {' or '.join(sections)}")
        for value in dimension.extremes():
            try:
                change_params(committed, {key: value})
            except UserError as error:
                raise UserError(f"{FILE}: space.{key}: {error}") from error
    return search


def change_params(committed: dict[str, object], changes: Mapping[str, Value]) -> Params:
    """Return the parameters in the content of params.yaml with changes by dotted keys.

    Raises UserError if they are not valid.
    """
    values = copy.deepcopy(committed)
    for key, value in changes.items():
        set_value(values, key, value)
    return params.validate(Params, values, params.FILE)


def set_value(values: dict[str, object], key: str, value: Value) -> None:
    """Set the value of a dotted key in place. Raises UserError if there is no such section."""
    section, _, name = key.rpartition(".")
    found = get_value(values, section)
    if not isinstance(found, dict):
        raise UserError(f"{params.FILE}: expected a section {section}, got none")
    found[name] = value


def get_value(values: object, key: str) -> object:
    """Return the value of a dotted key, or None."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values
