"""HTML and SVG elements as text.

Owns: escaping, and the spelling of attributes. Refuses: to know what a page looks like.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_VOID = frozenset({"meta", "br"})


def text(value: object) -> str:
    """Return *value* as it may stand between tags."""
    return escape(str(value), quote=False)


def element(name: str, /, *children: str, **attributes: object) -> str:
    """Return an element with *children*, which are markup already.

    *attributes*: class_ is written class, stroke_width stroke-width; those that are None are left
    out, and floats lose the digits that no screen shows.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return f"<{name}{written}>"
    return f"<{name}{written}>{''.join(children)}</{name}>"


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of texts in a frame that scrolls when the screen is narrow.

    The first cell of a row is its heading. Columns that hold a number are set to the right.
    """
    numbers = [any(map(_is_number, column)) for column in zip(*rows, strict=True)]
    numbers[:1] = [False]

    def cells(name: str, line: Sequence[str], *first: str) -> str:
        rest = (
            element(name, text(cell), class_="n" if number else None)
            for cell, number in zip(line[1:], numbers[1:], strict=True)
        )
        return element("tr", *first, *rest)

    head = cells("th", header, element("th", text(header[0]), scope="col"))
    body = [cells("td", row, element("th", text(row[0]), scope="row")) for row in rows]
    return scrolling(
        caption,
        element(
            "table",
            element("caption", text(caption)),
            element("thead", head),
            element("tbody", *body),
        ),
    )


def scrolling(label: str, *children: str) -> str:
    """Return a frame for what may be wider than the screen; it scrolls by the keyboard too."""
    return element("div", *children, class_="wide", role="region", tabindex=0, aria_label=label)


def _is_number(cell: str) -> bool:
    """Tell whether *cell* starts with a number."""
    return cell[:1].isdigit()


def _plain(value: object) -> str:
    """Write an attribute's value."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
