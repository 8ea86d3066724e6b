"""How Sphinx makes a site of these pages: `make docs`.

The pages are plain Markdown, for code hosts show them too. What Sphinx needs beyond that is done
here: the navigation is made from the links of index.md, and links out of this folder are left
out of the site.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import fastpool

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "fastpool"
author = "fastpool contributors"
copyright = author  # noqa: A001  # Sphinx calls it so
version = release = fastpool.__version__

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "index"
myst_heading_anchors = 4
html_theme = "furo"
html_title = f"fastpool {release}"
html_copy_source = False
nitpicky = True

_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_PAGE = re.compile(r"\]\(((?!\.\.)[\w/.-]+\.md)\)")
_OUTSIDE = re.compile(
    r"\[([^\]]+)\]\((?:\.\./)+(?:README|CONTRIBUTING|CHANGELOG|SECURITY)\.md(?:#[\w-]+)?\)"
)


def navigation(index: str) -> str:
    """Return the directives that make a navigation of the pages that index.md links to."""
    captions = ["", *_SECTION.findall(index)]
    lines = []
    for caption, section in zip(captions, _SECTION.split(index)[::2], strict=True):
        pages = list(dict.fromkeys(_PAGE.findall(section)))
        if pages:
            lines += ["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""]
    return "\n".join(lines)


def adapt(app: Sphinx, name: str, source: list[str]) -> None:
    """Change the text of a page that Sphinx has read."""
    text = _OUTSIDE.sub(r"\1", source[0])
    if name == root_doc:
        # A site has one page with all of them below it, even where it lists no other.
        text += "\n" + navigation(Path(app.srcdir, "index.md").read_text(encoding="utf-8"))
    source[0] = text


def setup(app: Sphinx) -> None:
    """Have Sphinx call us."""
    app.connect("source-read", adapt)
