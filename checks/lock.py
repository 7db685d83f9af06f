"""dvc.lock: the digests that a commit promises."""

from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages import artifacts
from stages.errors import UserError, one_line

FILE = Path("dvc.lock")


def outputs(folder: Path = Path()) -> dict[tuple[str, str], str]:
    """Return the MD5 digest, as DVC writes it, of each output that is locked in `folder`, by its stage and its path.

    Raises UserError if nothing is locked there, or the file is not as DVC leaves it after `dvc repro`.
    """
    try:
        stages = YAML(typ="safe").load(artifacts.require(folder / FILE))["stages"]
        return {(name, out["path"]): out["md5"] for name, stage in stages.items() for out in stage.get("outs", ())}
    except (YAMLError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{FILE} cannot be read: {one_line(error)}; `git restore {FILE}` may help") from error
