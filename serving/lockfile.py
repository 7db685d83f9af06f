"""The project's one reader of dvc.lock, in which DVC records the digests of a pipeline's outputs."""

from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from serving.errors import one_line

T = TypeVar("T")
KINDS = {dict: "a mapping", list: "a sequence", str: "a string", type(None): "nothing"}


def read_outputs(lock: Path) -> dict[tuple[str, str], str | None]:
    """Return the MD5 digest of every output in a dvc.lock, by stage name and path.

    The digest of a directory ends with `.dir`; None stands for an output of which DVC recorded no MD5.
    Raises ValueError with one line of text if the file is missing, unreadable or not laid out as DVC writes it.
    """
    document = require(dict, parse_yaml(lock), lock, "the top level")
    outputs = {}
    for stage, entry in require(dict, document.get("stages"), lock, "stages").items():
        place = f"stages.{stage}"
        for output in require(list, require(dict, entry, lock, place).get("outs", []), lock, f"{place}.outs"):
            path = require(str, require(dict, output, lock, f"{place}.outs").get("path"), lock, f"{place}.outs.path")
            md5 = output.get("md5")
            outputs[stage, path] = None if md5 is None else require(str, md5, lock, f"{place}.outs.md5")
    return outputs


def parse_yaml(lock: Path) -> Any:
    """Return the content of a YAML file. Raises ValueError if it is missing, unreadable or not YAML."""
    try:
        return YAML(typ="safe", pure=True).load(lock.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{lock}: expected a file written by `dvc repro`, got: {error.strerror}") from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{lock}: expected YAML, got: {one_line(error)}") from error


def require(kind: type[T], value: object, lock: Path, place: str) -> T:
    """Return a value of a dvc.lock. Raises ValueError if it is of another type."""
    if not isinstance(value, kind):
        found = KINDS.get(type(value), "a scalar")
        raise ValueError(f"{lock}: expected {KINDS[kind]} at {place}, got {found}")
    return value
