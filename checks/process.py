"""Commands of other programs, such as git and dvc."""

import os
import subprocess
from pathlib import Path

from stages.errors import UserError


def run(*command: str, folder: Path = Path(), **environment: str) -> None:
    """Run a command with its output shown. Raises UserError if it fails."""
    status = subprocess.run(command, cwd=folder, env=os.environ | environment).returncode
    if status:
        raise UserError(f"`{' '.join(command)}`: expected exit status 0, got {status}")


def capture(*command: str) -> str:
    """Return the output of a command. Raises UserError if it fails."""
    # A file name may be no UTF-8.
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", errors="surrogateescape")
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or [""]
        line = next((line for line in lines if line.startswith("ERROR")), lines[0])  # DVC's warnings come first
        raise UserError(f"`{' '.join(command)}`: expected exit status 0, got {ended.returncode}: {line}")
    return ended.stdout
