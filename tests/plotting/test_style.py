# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Figures that notebooks show, and a committed picture of every function."""

from __future__ import annotations

import importlib.util
import inspect
import io
import re
import shlex
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import Colormap, to_rgb
from matplotlib.figure import Figure

from pyro_neuralrg import IsingDual, plotting
from pyro_neuralrg.plotting.learned import LEVELS, POSITIVE
from pyro_neuralrg.plotting.style import SIGNED, png
from tests.tutorials.scripts import load

PICTURES = Path(__file__).parents[2] / "tutorials" / "figures"
FUNCTIONS = sorted(name for name in plotting.__all__ if name.startswith("plot_"))


def test_notebooks_show_new_figures() -> None:
    ax = plotting.plot_free_energy([3.0, 2.0, 1.5], exact=1.0)
    picture = matplotlib.image.imread(io.BytesIO(ax.figure._repr_png_()))
    assert picture.shape[:2] == (320, 480)
    assert picture.std() > 0.05


def test_draws_on_what_is_given_and_writes_a_png(tmp_path: Path) -> None:
    figure = Figure()
    ax = figure.subplots()
    assert plotting.plot_free_energy([1.0, 0.5], ax=ax) is ax
    assert plotting.plot_pyramid([np.ones((2, 4))], figure=figure) is figure
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_curves_differ_in_lightness_or_style() -> None:
    """Two curves that only differ in hue cannot be told apart by every reader or on paper."""
    lightness = [sum(to_rgb(colour)) / 3 for colour in plotting.COLOURS]
    pairs = list(zip(lightness, plotting.STYLES, strict=True))
    assert all(
        abs(a - c) > 0.05 or b != d for i, (a, b) in enumerate(pairs) for c, d in pairs[i + 1 :]
    )


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


def test_pngs_keep_the_colours_of_curves() -> None:
    figure = plotting.new_figure(2.0, 2.0)
    ax = figure.subplots()
    for index, colour in enumerate(plotting.COLOURS):
        ax.axhspan(index, index + 1, color=colour)
    ax.imshow(np.random.default_rng(0).random((60, 60)), extent=(0, 1, 5, 9), aspect="auto")
    ax.set_ylim(0, 9)
    picture = matplotlib.image.imread(io.BytesIO(png(figure, 100)))[..., :3].reshape(-1, 3)
    for colour in plotting.COLOURS:
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        assert np.abs(picture - wanted).max(1).min() < 0.04


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
    """The command of every picture in the tables of the README, from its row or else its table."""
    found, whole = {}, ""
    for line in (PICTURES / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| figure"):
            whole = cells[-1].strip("`")
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
        else:
            assert words[1:] == ["tutorials/figures/make.py", "--flow", "flow.pt"]
            stem = name.removesuffix(".png")
            assert f'"{name}"' in script or f'"{stem}": plotting.plot_{stem}(' in script


def test_the_energy_of_the_picture_is_that_of_a_probability() -> None:
    """-ln p of the coarsest variable: p is one in total, with the free energy taken off."""
    spec = importlib.util.spec_from_file_location("make_pictures", PICTURES / "make.py")
    assert spec is not None
    assert spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    target = IsingDual((2, 2), temperature=4.0)
    energy = make.energy_of_the_top(target, target.flow(), np.linspace(-8.0, 8.0, 1000))
    p = np.nan_to_num(np.exp(-np.asarray(energy.values)))  # none where no sample is
    assert np.trapezoid(p, energy.x) == pytest.approx(1.0, abs=0.1)
