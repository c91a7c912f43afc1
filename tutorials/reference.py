# SPDX-License-Identifier: Apache-2.0
"""The pages of the API reference: every public name, once, in the package where it is at home.

Public is what the ``__all__`` of the package and of its subpackages export. ``conf.py`` writes the
pages to ``reference/`` at each build; Sphinx fills them from the docstrings.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import itertools
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

import pyro_neuralrg

ROOT = pyro_neuralrg.__name__


@functools.cache
def statements(module: str) -> list[ast.stmt]:
    """The top level of the source of a module."""
    return ast.parse(inspect.getsource(sys.modules[module])).body


def packages() -> dict[str, ModuleType]:
    """The package and its subpackages that export anything, by their full names."""
    walked = pkgutil.walk_packages(pyro_neuralrg.__path__, f"{ROOT}.")
    names = [ROOT, *(module.name for module in walked if module.ispkg)]
    loaded = {name: importlib.import_module(name) for name in names}
    return {name: module for name, module in loaded.items() if getattr(module, "__all__", [])}


def defining_module(package: str, name: str) -> str:
    """The module in whose source the name is defined, found by following imports."""
    for node in statements(package):
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return defining_module(str(node.module), name)
    return package


@functools.cache
def homes() -> dict[str, str]:
    """The package of each public name: where it is defined, if that exports it, else the highest.

    The root is the home of what no subpackage exports.
    """
    exported: dict[str, list[str]] = {}
    for package, module in packages().items():
        for name in module.__all__:
            exported.setdefault(name, []).append(package)
    found = {}
    for name, places in exported.items():
        source = defining_module(places[-1], name)

        def rank(package: str, source: str = source) -> tuple[bool, bool, int]:
            return package == ROOT, not f"{source}.".startswith(f"{package}."), len(package)

        found[name] = min(places, key=rank)
    return found


def description_of_data(module: str, name: str) -> str:
    """The string below the assignment of a constant or of the name of a type."""
    body = statements(module)
    for node, below in itertools.pairwise(body):
        match node, below:
            case (
                ast.Assign(targets=[ast.Name(id=found)]) | ast.AnnAssign(target=ast.Name(id=found)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ) if found == name:
                return inspect.cleandoc(text)
    raise ValueError(f"{module}.{name}: describe it by a string below its assignment")


def documented_elsewhere(public: type) -> list[str]:
    """Bases whose members have a page of their own, or are of another package."""
    at_home = homes()
    return [
        base.__name__
        for base in public.__mro__[1:]
        if base.__name__ in at_home or base.__module__.split(".")[0] != ROOT
    ]


def entry(package: str, name: str) -> str:
    """The directive that documents a name."""
    public = getattr(sys.modules[package], name)
    if inspect.isclass(public):
        bases = "   :show-inheritance:\n" if public.__bases__ != (object,) else ""
        others = ", ".join(documented_elsewhere(public))
        return (
            f".. autoclass:: {package}.{name}\n{bases}"
            f"   :members:\n   :inherited-members: {others}\n"
        )
    if inspect.isfunction(public):
        return f".. autofunction:: {package}.{name}\n"
    text = description_of_data(defining_module(package, name), name)
    lines = "".join(f"   {line}".rstrip() + "\n" for line in text.splitlines())
    return f".. py:data:: {name}\n   :module: {package}\n\n{lines}"


def title(text: str) -> str:
    """A heading."""
    return f"{text}\n{'=' * len(text)}\n\n"


def summary(module: ModuleType) -> str:
    """The first line of a docstring."""
    return inspect.getdoc(module).splitlines()[0]


def page(package: str) -> str:
    """The page of a subpackage: its docstring, then its names in the order of ``__all__``."""
    at_home = homes()
    module = packages()[package]
    own = [name for name in module.__all__ if at_home[name] == package]
    elsewhere = [name for name in module.__all__ if at_home[name] != package]
    text = title(package) + f".. automodule:: {package}\n\n"
    if elsewhere:
        links = ", ".join(f":py:obj:`~{at_home[name]}.{name}`" for name in elsewhere)
        text += f"Exported here too: {links}.\n\n"
    return text + "\n".join(entry(package, name) for name in own)


def pages() -> dict[str, str]:
    """The text of each page, by its name; packages without names of their own have none."""
    used = sorted(set(homes().values()))
    modules = packages()
    lines = "".join(f"* :doc:`{name}`: {summary(modules[name])}\n" for name in used)
    names = "".join(f"   {package}\n" for package in used)
    index = (
        title("API reference")
        + "Every public name, with the package to import it from. The names that are used most "
        + f"can also be imported from :py:mod:`{ROOT}`.\n\n"
        + f"{lines}\n.. toctree::\n   :hidden:\n\n{names}"
    )
    return {"index": index, **{package: page(package) for package in used}}


def write(folder: Path) -> None:
    """Write the pages that have changed, so that Sphinx reads no other again; remove old ones."""
    folder.mkdir(exist_ok=True)
    texts = {f"{name}.rst": text for name, text in pages().items()}
    for path in folder.glob("*.rst"):
        if path.name not in texts:
            path.unlink()
    for name, text in texts.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
