"""dvc.lock: the digests that a commit promises."""

from pathlib import Path

from ruamel.yaml import YAML

from stages import artifacts

FILE = Path("dvc.lock")


def outputs(folder: Path = Path()) -> dict[str, dict[str, str]]:
    """Return the MD5 digest of each output's path, as DVC writes it, for each stage that is locked in `folder`.

    Raises UserError if nothing is locked there.
    """
    stages = YAML(typ="safe").load(artifacts.require(folder / FILE))["stages"]
    return {name: {out["path"]: out["md5"] for out in stage.get("outs", ())} for name, stage in stages.items()}
