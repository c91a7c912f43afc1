# SPDX-License-Identifier: Apache-2.0
"""Settings of the site: ``python -m sphinx -W -b html tutorials build/site``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # this checkout, whatever is installed

import reference  # noqa: E402
from docutils import nodes  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402

import pyro_neuralrg  # noqa: E402

project = "pyro_neuralrg"
author = "The pyro_neuralrg contributors"
copyright = author
version = release = pyro_neuralrg.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
    "sphinx_copybutton",
]
html_theme = "furo"
html_title = "pyro_neuralrg"
html_static_path = ["_static"]
html_css_files = ["site.css"]

nb_execution_mode = "off"  # outputs are those that the notebooks keep
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .viewcode-back"  # links of the pages of sources

napoleon_numpy_docstring = False
napoleon_use_param = False  # lists in which "a, b: ..." stays as it is written
napoleon_custom_sections = [("Attributes", "params_style")]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_type_aliases = {
    name: name for name in ("ArrayLike", "npt.ArrayLike", "FloatArray", "Points")
}
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 88

ROOT_PAGES = {
    f"{name.upper()}.md": f"{name}.md" for name in ("readme", "changelog", "contributing")
}
"""Pages at the root of the repository, and those of the site that include them."""
LINK = re.compile(r"\[([^\[\]]*)\]\((?![a-z]+:|#)([^\s()#]+)([^\s()]*)\)")


def on_site(link: re.Match[str]) -> str:
    """A link from the root of the repository, as it is on the site; folders have no page."""
    text, target, anchor = link.groups()
    if target != "tutorials/" and (HERE.parent / target).is_dir():
        return text
    inside = target.removeprefix("tutorials/") or "index.md"
    place = ROOT_PAGES.get(target) or (inside if inside != target else f"../{target}")
    return f"[{text}]({place}{anchor})"


def relink_included(app: Sphinx, path: Path, docname: str, content: list[str]) -> None:
    """Let the links of a page that is included from the root lead to the pages of the site."""
    content[0] = LINK.sub(on_site, content[0])


def relink(app: Sphinx, docname: str, content: list[str]) -> None:
    """Let links of a page to those at the root lead to the pages of the site."""
    for old, new in ROOT_PAGES.items():
        content[0] = content[0].replace(f"](../{old}", f"]({new}")


def skip_fields_of_tuples(app: Sphinx, kind: str, name: str, member: Any, *_: Any) -> bool | None:
    """Leave out what says "Alias for field number 0": the class describes its fields."""
    return True if (getattr(member, "__doc__", "") or "").startswith("Alias for field") else None


def name_aliases(
    app: Sphinx, kind: str, name: str, thing: Any, options: Any, arguments: Any, returns: Any
) -> tuple[str | None, str | None]:
    """Write the names of type aliases that are part of a union as those that stand alone."""
    found = re.compile(r"TypeAliasForwardRef\('(.*?)'\)")
    return arguments and found.sub(r"\1", arguments), returns and found.sub(r"\1", returns)


def find_by_last_name(
    app: Sphinx, env: Any, node: nodes.Element, text: nodes.Element
) -> nodes.Element | None:
    """Resolve a public name that a docstring of another package gives by its last part."""
    if node.get("refdomain") != "py":
        return None
    parts = node["reftarget"].split(".")
    own = parts[-2:] if node["reftype"] in {"meth", "attr"} else parts[-1:]
    home = reference.homes().get(own[0])
    if home is None or (node["reftype"] in {"meth", "attr"} and len(own) == 1):
        return None
    target = ".".join([home, *own])
    domain = env.get_domain("py")
    return domain.resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], target, node, text
    )


def setup(app: Sphinx) -> None:
    """Write the pages of the reference, and connect the hooks."""
    reference.write(HERE / "reference")
    app.connect("include-read", relink_included)
    app.connect("source-read", relink)
    app.connect("autodoc-skip-member", skip_fields_of_tuples)
    app.connect("autodoc-process-signature", name_aliases)
    app.connect("missing-reference", find_by_last_name)
