"""Read every output and every file in DVC's cache anew, and name those that are not what their digest says.

DVC itself takes a file for unchanged while its size and time are, and never looks into its cache.
"""

import sys
from pathlib import Path

from dvc.fs import localfs
from dvc.repo import Repo
from dvc_data.hashfile.build import build
from dvc_data.hashfile.db import HashFileDB
from dvc_data.hashfile.hash import file_md5
from dvc_objects.fs import MemoryFileSystem

from checks import lock
from stages import command


def main() -> None:
    """Print a line for each damaged file, and exit with 1 if there is one."""
    outputs = lock.outputs()
    here = {path: md5 for (_, path), md5 in outputs.items() if Path(path).exists()}
    damaged = [f"{path} is not what dvc.lock says" for path, md5 in here.items() if digest(path) != md5]
    cached = list(Path(Repo().cache.local.path).glob("??/*"))
    damaged += [f"{file} in the cache is not what its name says" for file in cached if not matches_its_name(file)]
    for line in damaged:
        print(line, file=sys.stderr)
    missing = f"; {len(outputs) - len(here)} outputs are not here" if len(here) < len(outputs) else ""
    print(f"{len(here)} outputs and {len(cached)} cached files read, {len(damaged)} damaged{missing}")
    sys.exit(bool(damaged))


def digest(path: str) -> str:
    """Return a file's or a folder's digest as DVC writes it into dvc.lock, without what DVC remembers of it."""
    database = HashFileDB(MemoryFileSystem(), "/")
    return build(database, str(Path(path).absolute()), localfs, "md5", dry_run=True)[2].hash_info.value


def matches_its_name(file: Path) -> bool:
    return file_md5(str(file), localfs) == file.parent.name + file.name.removesuffix(".dir")


if __name__ == "__main__":
    command.run(main)
