"""Write a report for a pull request: the metrics and plots of the workspace, compared with another revision."""

import json
from pathlib import Path
from typing import Any

import vl_convert

from checks.process import capture
from experiments.plots import VEGA_LITE
from stages import artifacts, command

FOLDER = Path("build/report")
REPORT = "report.md"


def main(revision: str) -> None:
    """Write build/report/report.md, which compares the workspace with a git REVISION, and its pictures."""
    with artifacts.atomic_write(FOLDER) as folder:
        plots = json.loads(capture("dvc", "plots", "diff", revision, "--json", "--out", str(folder)))["data"]
        metrics = capture("dvc", "metrics", "diff", "--md", revision) or "No metric differs.\n"
        lines = [f"# Compared with {revision}\n", metrics]
        for name, versions in plots.items():
            for version in versions:
                picture = write_picture(folder, name, version)
                lines += [f"## {name}: {', '.join(version['revisions'])}\n", f"![{name}]({picture})\n"]
        (folder / REPORT).write_text("\n".join(lines), encoding="utf-8")
    print(FOLDER / REPORT)


def write_picture(folder: Path, name: str, version: dict[str, Any]) -> str:
    """Draw a plot that is not a picture yet, of all revisions together; return the file's name in the folder."""
    if version["type"] == "image":
        return Path(version["url"]).name
    file = folder / f"{name.replace('/', '_')}.png"
    file.write_bytes(vl_convert.vegalite_to_png(version["content"], VEGA_LITE))
    return file.name


if __name__ == "__main__":
    command.run(main, "revision")
