"""A stage as a command: its arguments, and one clear line for a user's mistake."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from stages.errors import UserError


def run(stage: Callable[..., None], *arguments: str) -> None:
    """Call `stage` with the named command-line arguments; a UserError ends the process with exit code 1."""
    sys.stdout.reconfigure(line_buffering=True)  # into a pipe or a file, too, each line as it comes
    file = Path(sys.argv[0])
    parser = argparse.ArgumentParser(prog=f"python -m {file.parent.name}.{file.stem}", description=stage.__doc__)
    for argument in arguments:
        parser.add_argument(argument)
    try:
        stage(**vars(parser.parse_args()))
    except UserError as error:
        sys.exit(f"{file.stem}: {error}")
