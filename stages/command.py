"""Command-line entry point: parses arguments and prints errors without a traceback."""

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.errors import UserError

INTERRUPTED = 130  # the exit status of a shell command that SIGINT ended


def run(stage: Callable[..., None], *arguments: str) -> None:
    """Parse positional arguments with these names, and call `stage` with them as `call` does."""
    script = Path(sys.argv[0])
    parser = argparse.ArgumentParser(prog=f"python -m {script.parent.name}.{script.stem}", description=stage.__doc__)
    for argument in arguments:
        parser.add_argument(argument)
    call(stage, **vars(parser.parse_args()))


def call(function: Callable[..., None], **arguments: Any) -> None:
    """Call a script's main function.

    A UserError or an error of the file system (disk full, read-only folder, …) is printed as its text and exits with 1;
    Ctrl-C exits with 130.
    """
    script = Path(sys.argv[0])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # each line appears at once in a pipe or a file too
    try:
        function(**arguments)
    except UserError as error:
        sys.exit(f"{script.stem}: {error}")
    except OSError as error:
        sys.exit(f"{script.stem}: {': '.join(str(part) for part in (error.filename, error.strerror or error) if part)}")
    except KeyboardInterrupt:
        print(f"{script.stem}: interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(INTERRUPTED)
