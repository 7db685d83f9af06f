"""dvc.lock: the digests that a commit promises."""

from pathlib import Path

from ruamel.yaml import YAML

from stages import artifacts

FILE = Path("dvc.lock")


def outputs(folder: Path = Path()) -> dict[tuple[str, str], str]:
    """Return the MD5 digest, as DVC writes it, of each output that is locked in `folder`, by its stage and its path.

    Raises UserError if nothing is locked there.
    """
    stages = YAML(typ="safe").load(artifacts.require(folder / FILE))["stages"]
    return {(name, out["path"]): out["md5"] for name, stage in stages.items() for out in stage.get("outs", ())}
