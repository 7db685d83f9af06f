"""The modules of this project that a script imports, directly or not."""

from modulefinder import ModuleFinder
from pathlib import Path

ROOT = Path(__file__).parent.parent


def imported_modules(script: Path) -> list[Path]:
    """Return the script and the project's modules that it imports, relative to the project's root and sorted.

    Imports inside functions and `if TYPE_CHECKING` count too. Nothing is executed.
    """
    finder = ModuleFinder(path=[str(ROOT)])  # other packages are not found there, and so not followed
    finder.run_script(str(script))
    files = [Path(file) for module in finder.modules.values() if (file := getattr(module, "__file__", None))]
    return sorted({file.resolve().relative_to(ROOT.resolve()) for file in files})
