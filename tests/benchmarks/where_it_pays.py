# SPDX-License-Identifier: Apache-2.0
"""From which lattice on a trained flow pays: seconds to 1000 effective draws, against the side.

    python -m tests.benchmarks.where_it_pays [--target ising|phi4] [--sides 8 16 32 64] [--out DIR]

CPU seconds of one thread until the squared magnetisation (structure factor) has so many effective
draws (``--effective``), by the rate of a shorter run: of samplers in physical space from white
noise, warm-up included and excluded, and of ``sample(target, flow, ...)``, training included and
excluded. The flow of the smallest lattice is trained for ``--steps``, each larger one grows from it
and is trained for as many steps again; its training counts all of them, and the compiling of the
couplings. Cluster Monte Carlo stands beside. Targets: the dual Ising model at Tc; phi^4 at m^2 =
-4, lambda = 4.25 (1 + 4 / L). ``/s`` are effective draws a second, z is the deviation from the
exact value in standard errors. Chains that disagree count more effective draws than they hold:
their seconds are a lower bound, drawn hollow.

The rows go to ``DIR/where_it_pays_TARGET.json``, the figure beside them; ``--draw`` only draws it.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_neuralrg import HMC, MAMS, MCLMC, ChEESHMC, IsingDual, Phi4, Schedule, fit, sample
from pyro_neuralrg.statistics import summarise
from tests.benchmarks.harness import Table, parse, timed, watch

LARGEST = 1.05  # R-hat; beyond it effective draws are not to be trusted
COLUMNS = {
    "side": "6.0f", "/s": "10.1f", "prepared": "10.1f", "drawing": "10.1f", "all": "10.1f",
    "S": "9.4f", "MCSE": "9.4f", "R-hat": "8.3f", "z": "7.1f",
}  # fmt: skip


def target_of(name: str, side: int) -> Any:
    """The target on a square."""
    if name == "ising":
        return IsingDual((side, side))
    return Phi4.from_mass((side, side), m2=-4.0, g=6.0 * 4.25 * (1.0 + 4.0 / side))


def row_of(method: str, side: int, prepared: float, seconds: float, found: Any) -> dict[str, Any]:
    """Figures of a method: effective draws in ``seconds`` after some of preparation."""
    rate = found.ess_bulk / seconds
    return {
        "method": method, "side": side, "rate": rate, "prepared": prepared,
        "mean": found.mean, "mcse": found.mcse, "rhat": found.rhat,
    }  # fmt: skip


def kernels(target: Any, side: int) -> dict[str, Any]:
    """Samplers in physical space; HMC with as many leapfrogs as the side, but at least 20."""
    return {
        "HMC": HMC(target, num_steps=max(20, side)),
        "ChEES": ChEESHMC(target),
        "MAMS": MAMS(target),
        "MCLMC (biased)": MCLMC(target),
    }


def physical(target: Any, side: int, options: Any) -> list[dict[str, Any]]:
    """The samplers that know no flow."""
    rows, observable = [], target.observables()[options.observable]
    for name, kernel in kernels(target, side).items():
        (mcmc, found), seconds = timed(
            lambda kernel=kernel: watch(
                kernel, observable, options.draws, options.warmup, options.chains
            )
        )
        shares = mcmc.seconds
        warmup = seconds * shares.warmup / (shares.warmup + shares.draws)
        rows.append(row_of(name, side, warmup, seconds - warmup, found))
    return rows


def cluster(target: Any, side: int, options: Any) -> list[dict[str, Any]]:
    """Cluster Monte Carlo: independent chains, each of one draw."""
    observable = target.observables()[options.observable]
    x, seconds = timed(lambda: target.sample_reference(options.cluster, 0))
    found = summarise(observable(x).reshape(4, -1))
    return [row_of("cluster", side, 0.0, seconds, found)]


def with_flows(options: Any) -> list[dict[str, Any]]:
    """The flow of each side, grown from the one before."""
    rows, spent, flow = [], 0.0, None
    for side in options.sides:
        target = target_of(options.target, side)
        schedule = None if flow is None else Schedule(cooling=None)
        torch.manual_seed(side)
        flow = target.flow() if flow is None else flow.grow(target.spectrum)
        training = {"steps": options.steps, "seed": 0, "progress": False, "schedule": schedule}
        _, seconds = timed(lambda target=target, flow=flow, t=training: fit(target, flow, **t))
        spent += seconds
        observable = target.observables()[options.observable]
        watched = {"watched": observable}
        draws, seconds = timed(
            lambda target=target, flow=flow, watched=watched: sample(
                target, flow, options.flow_draws, observables=watched, keep_draws=False, seed=0,
                progress=False,
            )
        )  # fmt: skip
        found = summarise(draws.observables["watched"])
        rows.append(row_of(f"flow, {draws.method}", side, spent, seconds, found))
        print(f"{side}: {draws.reason}")
    return rows


def exponents(rows: list[dict[str, Any]], key: str) -> dict[str, float]:
    """Slopes of ln seconds against ln side, by method."""
    of: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        of[family(row)].append((math.log(row["side"]), math.log(row[key])))
    return {
        name: float(np.polyfit(*zip(*points, strict=True), 1)[0])
        for name, points in of.items()
        if len(points) > 1
    }


def family(row: dict[str, Any]) -> str:
    """A method's name, the same on all lattices."""
    return row["method"].split(",")[0]


def draw(rows: list[dict[str, Any]], path: Path, target: str, effective: int) -> None:
    """Seconds against the side; the crossing of the flow with the best gradient sampler marked."""
    import matplotlib.pyplot as plt

    slopes, (figure, ax) = exponents(rows, "all"), plt.subplots(figsize=(8.4, 4.4))
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    for row in rows:
        curves[family(row)][row["side"]] = row["all"]
    for name, points in curves.items():
        label = f"{name}, $L^{{{slopes.get(name, math.nan):.1f}}}$"
        (line,) = ax.loglog(list(points), list(points.values()), "o-", label=label)
        poor = [r for r in rows if family(r) == name and r["rhat"] > LARGEST]
        ax.plot(
            [row["side"] for row in poor], [row["all"] for row in poor], "o", color="white",
            markeredgecolor=line.get_color(), zorder=3,
        )  # fmt: skip
    alone = {row["side"]: row["drawing"] for row in rows if family(row) == "flow"}
    ax.loglog(list(alone), list(alone.values()), "o:", color="0.5", label="flow, trained before")
    crossing = first_ahead(curves)
    if crossing is not None:
        ax.axvline(crossing, color="0.7", lw=1)
        ax.text(crossing, ax.get_ylim()[0], "flow ahead from here ", va="bottom", ha="right")
    ax.set_xticks(sorted(alone), [str(side) for side in sorted(alone)])
    ax.minorticks_off()
    ax.set(xlabel="side L", title=TITLES[target])
    ax.set_ylabel(f"CPU seconds to {effective} effective draws")
    ax.legend(
        frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8,
        title=f"hollow: R-hat > {LARGEST}", title_fontsize=8,
    )  # fmt: skip
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def first_ahead(curves: dict[str, dict[int, float]]) -> int | None:
    """The smallest side from which on the flow, training included, is ahead of all exact rivals."""
    rivals = [points for name, points in curves.items() if name in ("HMC", "ChEES", "MAMS")]
    flow = curves.get("flow", {})
    ahead = [s for s in sorted(flow) if all(flow[s] < r.get(s, math.inf) for r in rivals)]
    behind = [side for side in flow if side not in ahead]
    last = max(behind, default=0)
    return next((side for side in ahead if side > last), None)


TITLES = {
    "ising": "Dual Ising model at $T_c$",
    "phi4": r"$\phi^4$, $m^2 = -4$, $\lambda = 4.25 (1 + 4 / L)$",
}


def main() -> None:
    options = parse(
        __doc__,
        target=({"choices": list(TITLES), "default": "ising"}, "the model"),
        sides=[8, 16, 32, 64],
        steps=(300, "of training on each lattice"),
        chains=64,
        draws=400,
        warmup=200,
        flow_draws=10_000,
        cluster=(1000, "configurations of cluster Monte Carlo"),
        effective=(1000, "effective draws wanted"),
        observable="structure_factor",
        threads=1,
        out=({"type": Path, "default": Path(".")}, "folder of the rows and the figure"),
        draw=(False, "only draw the figure of the rows that are there"),
    )
    file = options.out / f"where_it_pays_{options.target}.json"
    if not options.draw:
        options.out.mkdir(parents=True, exist_ok=True)
        rows = with_flows(options)
        for side in options.sides:
            target = target_of(options.target, side)
            rows += physical(target, side, options) + cluster(target, side, options)
        file.write_text(json.dumps(rows, indent=1) + "\n")
    rows, table = json.loads(file.read_text()), Table(24, COLUMNS, "method")
    for row in rows:
        row["drawing"] = options.effective / row["rate"]
        row["all"] = row["prepared"] + row["drawing"]
    for row in sorted(rows, key=lambda row: (row["side"], row["all"])):
        spins = getattr(target_of(options.target, row["side"]), "spins", None)
        exact = math.nan if spins is None else spins.structure_factor()
        table.row(
            row["method"], row["side"], row["rate"], row["prepared"], row["drawing"], row["all"],
            row["mean"], row["mcse"], row["rhat"], (row["mean"] - exact) / row["mcse"],
        )  # fmt: skip
    for key, words in (("drawing", "drawing alone"), ("all", "everything included")):
        found = ", ".join(f"{name} {slope:.1f}" for name, slope in exponents(rows, key).items())
        print(f"exponents of the side, {words}: {found}")
    draw(rows, file.with_suffix(".png"), options.target, options.effective)


if __name__ == "__main__":
    main()
