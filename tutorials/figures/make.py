# SPDX-License-Identifier: Apache-2.0
"""Pictures of those functions of ``pyro_neuralrg.plotting`` that no figure of the paper shows.

``python tutorials/figures/make.py --flow flow.pt``, with the flow of
``tutorials/paper/fig3a.py``, 16 x 16 at the critical temperature.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from pyro_neuralrg import (
    HMC,
    Cycle,
    IndependenceMetropolis,
    IsingDual,
    VectorizedMCMC,
    analysis,
    load,
    plotting,
)
from pyro_neuralrg.plotting.style import note, png

HERE = Path(__file__).parent
CHAINS, DRAWS, WARMUP = 32, 300, 200
FIELDS, POINTS = 4000, 41
FEWEST = 30  # effective samples behind a point
TEMPERATURES = (2.0, 2.269185, 2.7)


def write_figure(path: Path, figure: Figure) -> None:
    """Write a small PNG."""
    path.write_bytes(png(figure, 120))


def sample(target: IsingDual, flow: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Fields of both samplers from one start, shape ``(chains, draws) + shape``."""
    start = torch.randn(CHAINS, *target.shape)
    kernels = {
        "latent": Cycle(HMC(target, num_steps=2, flow=flow), IndependenceMetropolis(flow)),
        "physical": HMC(target, num_steps=10),
    }
    found = {}
    for name, kernel in kernels.items():
        run = VectorizedMCMC(
            kernel, DRAWS, WARMUP, num_chains=CHAINS, initial_params={"x": start}, seed=0
        )
        run.run()
        found[name] = run.get_samples(group_by_chain=True)["x"]
    return found


def pictures_of_runs(target: IsingDual, flow: torch.nn.Module, out: Path) -> None:
    """Running means, traces, ranks and configurations of the two samplers."""
    fields = sample(target, flow)
    series = {
        name: target.observables()["structure_factor"](x).numpy() for name, x in fields.items()
    }
    exact = target.spins.structure_factor()
    drawn = {
        "structure_factor": plotting.plot_structure_factor(series, exact=exact),
        "trace": plotting.plot_trace(
            fields["physical"].mean((-1, -2)).numpy(), label="mean field (dimensionless)", exact=0.0
        ),
        "ranks": plotting.plot_ranks(series["physical"], label="the structure factor"),
    }
    for name, ax in drawn.items():
        write_figure(out / f"{name}.png", ax.figure)
    last = {name: x[:4, -1].numpy() for name, x in fields.items()}
    last["cluster Monte Carlo"] = target.sample_reference(4, seed=0).numpy()
    spins = {name: target.sample_spins(torch.as_tensor(x), seed=0) for name, x in last.items()}
    axes = plotting.plot_configurations(last, spins=spins)
    write_figure(out / "configurations.png", axes[0, 0].figure)


def pictures_of_scales(target: IsingDual, flow: torch.nn.Module, out: Path) -> None:
    """Fields at every scale, and the coarsest variable around the critical temperature."""
    x = target.sample_reference(3, seed=1).float()
    write_figure(out / "pyramid.png", plotting.plot_pyramid(analysis.pyramid(flow, x)))
    tops, energies = {}, {}
    for temperature in TEMPERATURES:
        name, model = f"T = {temperature:.3g}", IsingDual(target.shape, temperature=temperature)
        x = model.sample_reference(FIELDS, seed=2).float()
        tops[name] = analysis.top_variable(flow, x).numpy()
        energy = energy_of_the_top(model, flow, tops[name])
        if np.isfinite(energy.values).any():
            energies[name] = energy
    write_figure(out / "top_variable.png", plotting.plot_top_variable(tops).figure)
    ax = plotting.plot_effective_energy(tops, computed=energies)
    unknown = [name for name in tops if name not in energies]
    if unknown:
        note(ax, f"Eq. 6 from too few effective samples of this flow: {', '.join(unknown)}")
    write_figure(out / "effective_energy.png", ax.figure)


def energy_of_the_top(model: IsingDual, flow: torch.nn.Module, top: np.ndarray) -> plotting.Series:
    """-ln p of the coarsest variable where enough samples of the flow tell it."""
    y = torch.linspace(*np.quantile(top, [0.001, 0.999]).tolist(), POINTS)
    found = analysis.top_energy(model, flow, y, num_samples=FIELDS)
    known = (found.ess * FIELDS > FEWEST) & (found.pareto_k <= 1)  # above 1 an infinite error
    values = torch.where(known, found.values + model.log_partition(), torch.nan)
    return plotting.Series(y.numpy(), values.numpy(), found.standard_error.numpy())


def main() -> None:
    """Make all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flow", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    flow = load(options.flow).flow
    target = IsingDual(flow.shape)
    torch.manual_seed(0)
    pictures_of_scales(target, flow, options.out)
    pictures_of_runs(target, flow, options.out)


if __name__ == "__main__":
    main()
