# SPDX-License-Identifier: Apache-2.0
"""Curves say what is missing in them, notebooks show figures, and every function has a picture."""

from __future__ import annotations

import inspect
import itertools
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, to_rgb
from matplotlib.figure import Figure
from scipy.integrate import trapezoid

from pyro_neuralrg import IsingDual, plotting
from pyro_neuralrg.analysis import GroupedInformation
from pyro_neuralrg.plotting import Series
from pyro_neuralrg.plotting.learned import LEVELS, POSITIVE
from pyro_neuralrg.plotting.style import SIGNED
from tests.tutorials.scripts import load

PICTURES = Path(__file__).parents[2] / "tutorials" / "figures"
FUNCTIONS = sorted(name for name in plotting.__all__ if name.startswith("plot_"))


def information(found: dict[str, Series]) -> Axes:
    groups = {}
    for name, series in found.items():
        x, values, error = (torch.tensor(np.array(a, dtype=float)) for a in series)
        groups[name] = GroupedInformation(values, error, torch.ones(len(x)), positions=x)
    return plotting.plot_information_by_distance(groups)


def effective(found: dict[str, Series]) -> Axes:
    return plotting.plot_effective_energy({name: [0.0, 1.0] for name in found}, computed=found)


FIGURES: dict[str, Callable[[dict[str, Series]], Axes]] = {
    "plot_estimates": plotting.plot_estimates,
    "plot_information_by_distance": information,
    "plot_effective_energy": effective,
}
"""Every function that draws curves, of the curves alone."""


def title(ax: Axes) -> str:
    return " ".join(ax.get_title().split())


@pytest.mark.parametrize("name", FIGURES)
def test_what_is_missing_is_said(name: str) -> None:
    whole = Series([1, 2], [2.0, 3.0], [0.1, 0.1])
    assert FIGURES[name]({"a": whole}).get_title() == ""
    some = Series([1, 2, 3, 4], [2.0, np.nan, np.inf, 3.0], [0.1, 0.1, 0.1, np.nan])
    ax = FIGURES[name]({"a": some, "b": Series([1, 2], [2.0, 3.0], [np.nan, np.nan]), "c": whole})
    assert title(ax).startswith(
        "2 of 4 points of 'a' are not finite and left out; no error bar known for 1 of 2 points of "
        "'a'; no error bar known for 'b'"
    )
    assert "'c'" not in title(ax)


def test_an_unknown_error_has_no_bar() -> None:
    ax = plotting.plot_estimates({"a": Series([1, 2, 3], [2.0, 2.5, 3.0], [0.1, np.nan, 0.2])})
    line, _, bars = ax.containers[0]
    assert len(line.get_ydata()) == 3
    ends = np.array([np.asarray(bar)[:, 1] for bar in bars[0].get_segments() if len(bar)])
    lengths = np.ptp(ends[np.isfinite(ends).all(1)], axis=1)
    np.testing.assert_allclose(lengths, [0.2, 0.4])


def test_a_band_has_a_gap_where_the_error_is_unknown() -> None:
    steps = np.arange(1.0, 10.0)
    error = np.where(steps > 5, np.nan, 0.5)
    ax = effective({"a": Series(steps, np.full(9, 3.0), error)})
    band = np.concatenate([path.vertices for path in ax.collections[-1].get_paths()])
    assert band[:, 0].max() == 5.0
    assert title(ax) == "no error bar known for 4 of 9 points of 'a'"


def test_the_error_of_a_single_chain_is_not_known() -> None:
    values = np.random.default_rng(0).uniform(size=(1, 40))
    ax = plotting.plot_structure_factor({"one": values})
    assert title(ax).startswith("no error bar known for 'one'")
    assert not ax.collections or not any(len(p.vertices) for p in ax.collections[0].get_paths())


def test_draws_on_what_is_given_and_writes_a_png(tmp_path: Path) -> None:
    figure = Figure()
    ax = figure.subplots()
    assert plotting.plot_free_energy([1.0, 0.5], ax=ax) is ax
    assert plotting.plot_pyramid([np.ones((2, 4))], figure=figure) is figure
    figure.savefig(tmp_path / "figure.png")


def test_curves_differ_in_lightness_or_style() -> None:
    """Two curves that only differ in hue cannot be told apart by every reader or on paper."""
    lightness = [sum(to_rgb(colour)) / 3 for colour in plotting.COLOURS]
    curves = zip(lightness, plotting.STYLES, strict=True)
    for (one, style), (other, its_style) in itertools.combinations(curves, 2):
        assert abs(one - other) > 0.05 or style != its_style


@pytest.mark.parametrize("colours", [SIGNED, POSITIVE])
def test_lightness_grows_or_falls_along_the_colours(colours: str | Colormap) -> None:
    """So that figures can be read in grey, signs among them."""
    shown = colormaps.get_cmap(colours)(np.linspace(0, 1, LEVELS))[:, :3]
    steps = np.diff(shown @ [0.299, 0.587, 0.114])
    assert (steps > 0).all() or (steps < 0).all()


def test_pyplot_is_not_imported() -> None:
    sources = [path.read_text(encoding="utf-8") for path in Path(plotting.__path__[0]).glob("*.py")]
    assert len(sources) >= 4
    assert not any("import matplotlib.pyplot" in s or "pyplot as" in s for s in sources)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_committed_picture_shows_it(name: str) -> None:
    described = inspect.getdoc(getattr(plotting, name)) or ""
    found = re.search(r"Shown in\s+``tutorials/figures/(\w+\.png)``", described)
    assert found is not None
    assert (PICTURES / found[1]).exists()


def test_pictures_are_small_and_described() -> None:
    pictures = sorted(PICTURES.glob("*.png"))
    sizes = [path.stat().st_size for path in pictures]
    assert max(sizes) < 150_000
    assert sum(sizes) < 1_500_000
    assert set(commands()) == {path.name for path in pictures}


def commands() -> dict[str, str]:
    """The command of every picture in the tables of the README: of its row, or of its table.

    A table's stands in its head, with dots for what a row adds, or on a line before it.
    """
    found, whole = {}, ""
    for line in (PICTURES / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("By `"):
            whole = line.split("`")[1]
        elif line.startswith("| figure") and cells[-1] != "what it shows":
            whole = cells[-1].strip("`").replace("command", "...")
        for name in re.findall(r"\((\w+\.png)\)", line) if line.startswith("| [") else []:
            own = re.match(r"`(.*?)`", cells[-1])
            found[name] = whole.replace("...", own[1]) if own else whole
    return found


def test_pictures_have_commands_that_are_accepted() -> None:
    script = (PICTURES / "make.py").read_text(encoding="utf-8")
    for name, command in commands().items():
        words = shlex.split(command)
        assert words[0] == "python"
        if words[1].startswith("tutorials/paper/"):
            figure = load(Path(words[1]).stem)
            load("start").make_parser(figure).parse_args(words[2:])
            assert name.startswith(figure.__name__)
        elif words[1] == "-m":
            module = words[2].removeprefix("tests.benchmarks.")
            source = Path(__file__).parents[1] / "benchmarks" / f"{module}.py"
            options = re.findall(r"^        (\w+)=", source.read_text(encoding="utf-8"), re.M)
            given = {word[2:].replace("-", "_") for word in words if word.startswith("--")}
            assert given <= set(options)
            assert name.startswith(module)
        else:
            assert words[1:] == ["tutorials/figures/make.py", "--flow", "flow.pt"]
            stem = name.removesuffix(".png")
            assert f'"{name}"' in script or f'"{stem}": plotting.plot_{stem}(' in script


@pytest.mark.filterwarnings("ignore:the weights behind")
def test_the_energy_of_the_picture_is_that_of_a_probability() -> None:
    """-ln p of the coarsest variable: p is one in total, with the free energy taken off."""
    make = load("make", PICTURES)
    target = IsingDual((2, 2), temperature=4.0)
    energy = make.energy_of_the_top(target, target.flow(), np.linspace(-8.0, 8.0, 1000))
    p = np.nan_to_num(np.exp(-np.asarray(energy.values)))  # none where no sample is
    assert trapezoid(p, energy.x) == pytest.approx(1.0, abs=0.1)
