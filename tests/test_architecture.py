# SPDX-License-Identifier: Apache-2.0
"""The package as a whole: imports run one way and do nothing else, public names are described."""

from __future__ import annotations

import ast
import graphlib
import importlib
import inspect
import subprocess
import sys
import typing
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyro_neuralrg

ROOT = Path(pyro_neuralrg.__file__).parent
NAME = pyro_neuralrg.__name__

ORDER = (
    "arguments",
    "runtime",
    "files",
    "statistics",
    "bases",
    "lattice",
    "spectral",
    "compiled",
    "transforms",
    "distributions",
    "observables",
    "potentials",
    "flow_file",
    "infer",
    "train",
    "mcmc",
    "free_energy",
    "diagnostics",
    "sampling",
    "analysis",
    "plotting",
)
"""The parts of the package; each may import those before it."""
MAY_IMPORT = {name: set(ORDER[:place]) for place, name in enumerate(ORDER)}
MAY_IMPORT[""] = set(ORDER)  # the package itself: its public names
MAY_IMPORT["app"] = set(ORDER) | {""}  # the root for its version only
MAY_IMPORT["__main__"] = {"app"}

GLOBAL_SETTERS = {
    "set_default_dtype",
    "set_default_device",
    "set_default_tensor_type",
    "set_default_validate_args",
    "enable_validation",
    "use_deterministic_algorithms",
    "set_num_threads",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}


def part(module: str) -> str:
    """The part a module belongs to: "transforms", "cli", ... or "" for the root."""
    return module.removeprefix(NAME).lstrip(".").split(".")[0]


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Modules of this package that the source imports, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: import by the full name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name if name in SOURCES else str(node.module) for name in names]
        else:
            continue
        yield from (name for name in found if name == NAME or name.startswith(f"{NAME}."))


EDGES = {name: sorted({*imported_modules(tree)} - {name}) for name, tree in TREES.items()}


@pytest.mark.parametrize("module", SOURCES)
def test_imports_run_one_way(module: str) -> None:
    source = part(module)
    assert source in MAY_IMPORT, f"{module}: give this part its place in MAY_IMPORT"
    upward = [t for t in EDGES[module] if part(t) != source and part(t) not in MAY_IMPORT[source]]
    assert not upward, f"{module} may not import {upward}"


def test_no_import_circle() -> None:
    graphlib.TopologicalSorter(EDGES).prepare()  # or a CycleError, which names the circle


SAME_NAME_ON_PURPOSE = {
    "__all__": "the public names of a package",
}


def defined_names(tree: ast.Module) -> Iterator[str]:
    """Functions, classes and constants of a module, not what it imports."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for part in (part for target in targets for part in ast.walk(target)):
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                    yield part.id


def test_a_name_means_one_thing() -> None:
    """Or two modules define it, and a reader must find out which is meant."""
    places = defaultdict(list)
    for module, tree in TREES.items():
        for name in set(defined_names(tree)) - set(SAME_NAME_ON_PURPOSE):
            places[name].append(module)
    several = {name: modules for name, modules in sorted(places.items()) if len(modules) > 1}
    assert not several


def is_declaration(node: ast.stmt) -> bool:
    """True if a top-level statement only names things: no call is made for its effect."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.ClassDef():
            return True
        case ast.Expr(value=ast.Constant(value=str())) | ast.AnnAssign(target=ast.Name()):
            return True
        case ast.Assign():
            return all(isinstance(target, ast.Name | ast.Tuple) for target in node.targets)
        case ast.If():
            return ast.unparse(node.test) in {"TYPE_CHECKING", "__name__ == '__main__'"}
    return False


@pytest.mark.parametrize("module", SOURCES)
def test_importing_has_no_side_effect(module: str) -> None:
    effects = [node.lineno for node in TREES[module].body if not is_declaration(node)]
    assert not effects, f"{SOURCES[module]}: statements with an effect on lines {effects}"


@pytest.mark.parametrize("module", SOURCES)
def test_no_call_changes_global_settings(module: str) -> None:
    calls = [node for node in ast.walk(TREES[module]) if isinstance(node, ast.Call)]
    names = {ast.unparse(call.func).rpartition(".")[2] for call in calls}
    allowed = {"set_num_threads"} if module.endswith(".threads") else set()  # which puts it back
    assert not names & (GLOBAL_SETTERS | {"print"}) - allowed


IMPORT_EVERYTHING = f"""
import importlib, pkgutil, random, numpy, torch, pyro
def state():
    return (torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(),
            torch.distributions.Distribution._validate_args, torch.get_num_threads(),
            pyro.settings.get(), len(pyro.get_param_store()), torch.random.get_rng_state().tolist(),
            random.getstate(), str(numpy.random.get_state()))
before = state()
import {NAME} as package
for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not info.name.endswith("__main__"):
        importlib.import_module(info.name)
assert state() == before
"""


def test_importing_warns_of_nothing_and_changes_nothing() -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_EVERYTHING],
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert result.stderr == ""


@pytest.mark.parametrize("module", [name for name in SOURCES if not name.endswith("__main__")])
def test_public_names_exist_and_are_described(module: str) -> None:
    loaded = importlib.import_module(module)
    assert inspect.getdoc(loaded), f"{module} has no docstring"
    for name in getattr(loaded, "__all__", []):
        public = getattr(loaded, name)
        if inspect.isclass(public) or inspect.isfunction(public):
            assert inspect.getdoc(public), f"{module}.{name} has no docstring"


@pytest.mark.parametrize("module", [name for name in SOURCES if not name.endswith("__main__")])
def test_types_of_public_names_are_found(module: str) -> None:
    """As ``help`` and notebooks need them: of functions, and of classes and their own methods."""
    loaded = importlib.import_module(module)
    for public in (getattr(loaded, name) for name in getattr(loaded, "__all__", [])):
        members = vars(public).values() if inspect.isclass(public) else [public]
        for member in (public, *members):
            if inspect.isfunction(member) or inspect.isclass(member):
                typing.get_type_hints(member)


@pytest.mark.parametrize("module", [name for name in SOURCES if not name.endswith("__main__")])
def test_methods_are_described_or_override_one_that_is(module: str) -> None:
    for owner in vars(importlib.import_module(module)).values():
        if not inspect.isclass(owner) or owner.__module__ != module or owner.__name__[0] == "_":
            continue
        for name, method in vars(owner).items():
            function = method.fget if isinstance(method, property) else method
            if inspect.isfunction(function) and function.__name__ == name and name[0] != "_":
                assert inspect.getdoc(method), f"{module}.{owner.__name__}.{name}"
