"""Hash every output and every cached file again, and print those that do not match their digest.

DVC itself trusts a file whose size and modification time are unchanged, and never hashes its cache again.
"""

import sys
from pathlib import Path

from dvc.fs import localfs
from dvc.repo import Repo
from dvc_data.hashfile.build import build
from dvc_data.hashfile.db import HashFileDB
from dvc_data.hashfile.hash import file_md5
from dvc_objects.fs.memory import MemoryFileSystem

from checks import lock
from stages import command


def main() -> None:
    """Print a line for each damaged file, and exit with 1 if there is one."""
    damaged, summary = find_damage()
    for path in damaged:
        print(f"{path}: expected the recorded digest, got another: the file is corrupt", file=sys.stderr)
    if damaged:
        print(
            "remove these files; then `dvc checkout` restores outputs, `dvc pull` or `dvc repro` the cache",
            file=sys.stderr,
        )
    print(summary)
    sys.exit(bool(damaged))


def find_damage() -> tuple[list[str], str]:
    """Return the outputs and cached files that do not match their digests, and how many were hashed, as a sentence."""
    locked = lock.locked_digests()
    present = {path: digest for (_, path), digest in locked.items() if Path(path).exists()}
    damaged = [path for path, digest in present.items() if md5(path) != digest]
    cached = list(Path(Repo().cache.local.path).glob("??/*"))
    damaged += [str(file) for file in cached if not matches_name(file)]
    missing = f"; {len(locked) - len(present)} outputs are missing" if len(present) < len(locked) else ""
    return damaged, f"{len(present)} outputs and {len(cached)} cached files hashed, {len(damaged)} damaged{missing}"


def md5(path: str) -> str | None:
    """Return the digest of a file or a directory in dvc.lock's format, without DVC's memory of earlier digests."""
    database = HashFileDB(MemoryFileSystem(), "/")
    digest: str | None = build(database, str(Path(path).absolute()), localfs, "md5", dry_run=True)[2].hash_info.value
    return digest


def matches_name(file: Path) -> bool:
    """Return whether a file in DVC's cache has the digest that its path states."""
    return bool(file_md5(str(file), localfs) == file.parent.name + file.name.removesuffix(".dir"))


if __name__ == "__main__":
    command.run(main)
