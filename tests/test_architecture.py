# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The package as a whole: imports run one way and do nothing else, public names are described."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyro_neuralrg

ROOT = Path(pyro_neuralrg.__file__).parent
NAME = pyro_neuralrg.__name__

ORDER = (
    "arguments",
    "autograd",
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
    "analysis",
    "plotting",
)
"""Of the parts: each may import those before it."""
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


def imported_modules(tree: ast.AST, package: str) -> Iterator[str]:
    """Modules of this package that the source imports, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            found = [
                f"{base}.{a.name}" if f"{base}.{a.name}" in SOURCES else base for a in node.names
            ]
        else:
            continue
        yield from (name for name in found if name == NAME or name.startswith(f"{NAME}."))


def package_of(module: str) -> str:
    is_package = SOURCES[module].name == "__init__.py"
    return module if is_package else module.rpartition(".")[0]


EDGES = {
    name: sorted(set(imported_modules(tree, package_of(name))) - {name})
    for name, tree in TREES.items()
}


@pytest.mark.parametrize("module", SOURCES)
def test_imports_run_one_way(module: str) -> None:
    source = part(module)
    assert source in MAY_IMPORT, f"{module}: give this part its place in MAY_IMPORT"
    upward = [t for t in EDGES[module] if part(t) != source and part(t) not in MAY_IMPORT[source]]
    assert not upward, f"{module} may not import {upward}"


def test_no_import_circle() -> None:
    state: dict[str, str] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        if state.get(module) == "done":
            return
        assert state.get(module) != "open", f"circle: {' -> '.join([*path, module])}"
        state[module] = "open"
        for target in EDGES.get(module, []):
            visit(target, (*path, module))
        state[module] = "done"

    for module in SOURCES:
        visit(module, ())


def is_declaration(node: ast.stmt) -> bool:
    """Whether a top-level statement only names things: no call is made for its effect."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    if isinstance(node, ast.Assign):
        return all(isinstance(t, ast.Name | ast.Tuple) for t in node.targets)
    if isinstance(node, ast.AnnAssign):
        return isinstance(node.target, ast.Name)
    if isinstance(node, ast.If):
        test = ast.unparse(node.test)
        return test in {"TYPE_CHECKING", "__name__ == '__main__'"}
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


def library_modules() -> list[str]:
    found = [info.name for info in pkgutil.walk_packages([str(ROOT)], f"{NAME}.")]
    return [NAME, *(name for name in found if not name.endswith("__main__"))]


@pytest.mark.parametrize("module", library_modules())
def test_public_names_exist_and_are_described(module: str) -> None:
    loaded = importlib.import_module(module)
    assert inspect.getdoc(loaded), f"{module} has no docstring"
    for name in getattr(loaded, "__all__", []):
        public = getattr(loaded, name)
        if inspect.isclass(public) or inspect.isfunction(public):
            assert inspect.getdoc(public), f"{module}.{name} has no docstring"


def test_top_level_has_the_names_of_the_design() -> None:
    assert set(pyro_neuralrg.__all__) >= {
        "AutoHierarchicalFlow",
        "ChEESHMC",
        "ConditionalHierarchicalFlow",
        "FlowGuide",
        "FlowReparam",
        "IndependenceMetropolis",
        "IsingDual",
        "LatticePotential",
        "PDD",
        "SymmetrizedFlow",
        "VectorizedMCMC",
        "fit",
        "hierarchical_flow",
        "load",
        "save",
        "to_arviz",
    }
