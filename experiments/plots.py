"""Let `dvc plots show` write pages that need no network, with Vega inside instead of links to it."""

from pathlib import Path

import vl_convert

from checks.process import capture
from stages import artifacts, command

TEMPLATE = Path("build/plots.html")
VEGA_LITE = "5.21"  # DVC's templates are for version 5
PAGE = """\
<!DOCTYPE html>
<html>
<head>
<meta charset="utf-8">
{refresh_tag}
<title>Plots</title>
<script>%s</script>
</head>
<body>
{plot_divs}
</body>
</html>
"""


def main() -> None:
    """Write the template of `dvc plots show`, and name it in DVC's local configuration."""
    artifacts.write_text(TEMPLATE, PAGE % vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed", VEGA_LITE))
    path = Path("..") / TEMPLATE  # relative to .dvc
    capture("dvc", "config", "--quiet", "--local", "plots.html_template", str(path))


if __name__ == "__main__":
    command.run(main)
