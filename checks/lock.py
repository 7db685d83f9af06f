"""The digests of dvc.lock, for the checks."""

from pathlib import Path

from serving import lockfile
from stages.errors import UserError

FILE = Path("dvc.lock")


def locked_digests(folder: Path = Path()) -> dict[tuple[str, str], str | None]:
    """Return the MD5 digest of each output in a folder's dvc.lock, by stage name and path.

    Raises UserError if the file is missing or not laid out as DVC writes it.
    """
    try:
        return lockfile.read_outputs(folder / FILE)
    except ValueError as error:
        raise UserError(f"{error}; `git restore {FILE}` may help") from error
