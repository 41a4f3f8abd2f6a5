"""Make the pages of `dvc plots` render without a network: `python -m tools.vega_page`, once per clone.

DVC's own page loads the plotting library (Vega) from the web. This writes a page with the library in it, out of
the pinned package vl-convert-python, to .dvc/plots/offline.html and tells this clone's DVC to use it. Neither the
page nor the setting is in Git; without them DVC's own page is used.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import typer

from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.files import write_text
from stages.plot.colors import DARK, FAINT, INK, MUTED, PAPER

DVC, PAGE = Path(".dvc"), Path("plots/offline.html")
VEGA_LITE = "5.21"  # the major version that DVC's own templates, and ours, are written for
# DVC fills 300 into a template's width. Curves are read better on twice that, as far as the window has room next to axis
# and legend; in a narrow one the legend is below. VS Code fills in its own panel's width.
WIDER = """const embed = vegaEmbed, narrow = innerWidth < 700, width = Math.min(600, innerWidth - (narrow ? 130 : 200))
const below = (spec) => ({...spec, config: {...spec.config, legend: {...spec.config?.legend, orient: "bottom", columns: 3}}})
vegaEmbed = (at, spec) => embed(at, spec.width === 300 ? {...(narrow ? below(spec) : spec), width} : spec)"""
# Three revisions side by side, where the window has room; what is wider than the window moves sideways by itself.
STYLE = """:root { color-scheme: light dark } body { font-family: sans-serif } img { width: 30vw; min-width: min(340px, 80vw) }
div[id] { max-width: 100%; overflow-x: auto; white-space: normal !important }
@media print { :root { color-scheme: light } }"""
# Vega's own colors, and the legends' in .dvc/plots, where the browser is set to dark. Our figures follow it by themselves.
VEGA_DARK = {
    "white": DARK[PAPER],
    "#000": DARK[INK],
    "#333333": DARK[MUTED],
    "#888": DARK[MUTED],
    "#ddd": DARK[FAINT],
}


@exits_with_one_line
def main() -> None:
    """Write the page and tell this clone's DVC to use it."""
    if not (DVC / "config").exists():
        raise UserError(f"{DVC / 'config'} not found; run this in the project's root folder")
    write_text(DVC / PAGE, page())
    setting = ["config", "--local", "plots.html_template", PAGE.as_posix()]
    subprocess.run([sys.executable, "-m", "dvc", *setting], check=True)
    print(f"`dvc plots` uses {DVC / PAGE}, which needs no network")


def dark_rules() -> str:
    """CSS by which Vega's charts follow the browser's dark scheme, on a screen alone: paper stays white."""
    rules = (
        f'svg.marks [{part}="{light}" i] {{ {part}: {dark} }}'
        for light, dark in (DARK | VEGA_DARK).items()
        for part in ("fill", "stroke")
    )
    background = f"body, svg.marks {{ background: {DARK[PAPER]} !important; color: {DARK[INK]} }}"
    return "\n".join(("@media screen and (prefers-color-scheme: dark) {", background, *rules, "}"))


def page() -> str:
    """A page with Vega inlined and the places that DVC fills: {refresh_tag} and {plot_divs}."""
    import vl_convert

    library = vl_convert.javascript_bundle(vl_version=VEGA_LITE)  # type: ignore[call-arg]
    library = library.replace("</script", "<\\/script")
    return f"""<!DOCTYPE html>
<html>
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{{refresh_tag}}
<title>abctune: dvc plots</title>
<style>{STYLE}
{dark_rules()}</style>
<script>(() => {{
{library}
}})();</script>
</head>
<body>
<script>{WIDER}</script>
{{plot_divs}}
</body>
</html>
"""


if __name__ == "__main__":
    typer.run(main)
