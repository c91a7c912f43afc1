# SPDX-License-Identifier: Apache-2.0
"""Results in a notebook: small tables where a terminal shows a line."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from html import escape


def in_notebook() -> bool:
    """True within the kernel of a notebook."""
    return "ipykernel" in sys.modules


def html_table(title: object, rows: Mapping[str, object]) -> str:
    """A table of two columns, names and values, for ``_repr_html_``; ``None`` leaves a row out.

    Example:
        >>> html_table("p < 1", {"ESS": 3})
        '<table><caption>p &lt; 1</caption><tr><th>ESS</th><td>3</td></tr></table>'
    """
    told = [
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
        for name, value in rows.items()
        if value is not None
    ]
    caption = f"<caption>{escape(str(title))}</caption>"
    return f"<table>{caption}{''.join(told)}</table>"
