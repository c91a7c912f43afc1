# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind: the table, report.json, the flow, the samples and the figures.

Every file is written whole or not at all: a run that dies leaves whole files only.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_neuralrg import __version__, plotting
from pyro_neuralrg.app.job import Exact, Results, Sampling
from pyro_neuralrg.diagnostics import save_tree
from pyro_neuralrg.files.atomic import remove_leftovers, replacing, writing
from pyro_neuralrg.flow_file import save
from pyro_neuralrg.potentials.cluster import MonteCarlo
from pyro_neuralrg.train import FitResult

__all__ = ["Output", "as_json", "table"]

FIGURE_SIZE = (6.4, 4.2)
FILES = (
    "report.json",
    "flow.pt",
    "samples.nc",
    "free_energy.png",
    "structure_factor.png",
    "configurations.png",
)
PACKAGES = ("torch", "pyro-ppl", "numpy", "scipy", "arviz", "matplotlib")


@dataclass
class Output:
    """The folder that a run writes to.

    Attributes:
        folder: Where the files are.
        written: Names of the files of this run, in the order of writing.
        begun: When this run began, in seconds since the epoch.
    """

    folder: Path
    written: list[str] = field(default_factory=list)
    begun: float = field(default_factory=time.time)

    @classmethod
    def prepare(cls, folder: Path) -> Output:
        """Make the folder and see that it can be written, before any work is done.

        Raises:
            OSError: It cannot; the message names the argument and the folder.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
            for name in FILES:
                if (folder / name).is_dir():
                    raise OSError(f"{name} in it is a folder")
        except OSError as error:
            reason = error.strerror or error
            raise OSError(
                f"argument --out: {folder}: {reason}; accepted: a writable folder"
            ) from None
        return cls(folder)

    def names(self) -> str:
        """The files of this run, for a reader."""
        return ", ".join(self.written)

    def write_training(self, training: FitResult) -> None:
        """Save the trained flow, as soon as there is one: ``pyro_neuralrg.load`` reads it.

        The files of an earlier run are removed first: no folder holds files of two runs. What is
        half-written stays if it was written to since this run began: by another one, maybe.

        Raises:
            OSError: A file cannot be written; the message names it.
        """
        for name in FILES:
            with _failing_at(self.folder / name) as path:
                path.unlink(missing_ok=True)
            remove_leftovers(self.folder, name, self.begun)
        with self._named("flow.pt") as path:
            save(path, training.flow)

    def write(self, results: Results) -> None:
        """Write all else that the results hold, the report first.

        Raises:
            OSError: A file cannot be written; the message names it.
        """
        text = json.dumps(as_json(results), indent=2, allow_nan=False) + "\n"
        with self._named("report.json") as path, writing(path) as stream:
            stream.write(text.encode())
        samples = results.samplers.get("latent")
        if samples is not None:
            with self._named("samples.nc") as path, replacing(path) as temporary:
                save_tree(samples.idata, temporary)
        self._write_figures(results)

    def _write_figures(self, results: Results) -> None:
        history, found = results.training.history, results.estimate
        if len(history) == 0:
            return
        figure = Figure(figsize=FIGURE_SIZE, layout="constrained")
        plotting.plot_free_energy(
            history.free_energy,
            standard_error=history.free_energy_se,
            annealing_steps=int((history.temperature_factor > 1.0).sum()),
            exact=results.exact_free_energy.value,
            estimate=None if found is None else (found.importance, found.importance_se),
            ax=figure.subplots(),
        )
        figure.suptitle(title(results))  # the axes' own says what has not converged
        self._write_png("free_energy.png", figure)
        if not results.samplers:
            return
        figure = Figure(figsize=FIGURE_SIZE, layout="constrained")
        ax = plotting.plot_structure_factor(
            {name: run.structure_factor for name, run in results.samplers.items()},
            exact=results.exact_structure_factor.value,
            ax=figure.subplots(),
        )
        figure.suptitle(title(results))
        if results.reference_structure_factor is not None:
            _draw_reference(ax, results.reference_structure_factor)
        self._write_png("structure_factor.png", figure)
        fields = {name: run.last_fields for name, run in results.samplers.items()}
        count = min(len(values) for values in fields.values())
        figure = Figure(figsize=(2.0 * count + 1.2, 2.2 * len(fields)), layout="constrained")
        plotting.plot_configurations(fields, count=count, figure=figure)
        self._write_png("configurations.png", figure)

    def _write_png(self, name: str, figure: Figure) -> None:
        with self._named(name) as path, writing(path) as stream:
            figure.savefig(stream, format="png", dpi=150)

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[Path]:
        """Where a file of this run is written, in the block."""
        with _failing_at(self.folder / name) as path:
            yield path
        self.written.append(name)


@contextlib.contextmanager
def _failing_at(path: Path) -> Iterator[Path]:
    """Let an OSError name the file that was to be written."""
    try:
        yield path
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror or error})") from None


def title(results: Results) -> str:
    """The model in one line: lattice and temperature."""
    sides = " x ".join(map(str, results.settings.shape))
    return f"Ising model {sides}, T = {results.settings.temperature:.6g} J/k$_B$"


def _draw_reference(ax: Axes, reference: MonteCarlo) -> None:
    """The band of one standard error in the place of the exact line."""
    mean, error = reference
    ax.axhspan(mean - error, mean + error, color="black", alpha=0.3, label="cluster Monte Carlo")
    ax.legend(frameon=False)


def as_json(results: Results) -> dict[str, Any]:
    """The report: what is not known, not finite, or was not reached, is None.

    Free energies are in nats; ``gap`` is KL(q || pi/Z), ``forward_kl`` KL(pi/Z || q); ``ess`` of
    the free energy is a fraction of the samples, ``ess_bulk`` counts effective draws over all
    chains.
    """
    settings, reference = results.settings, results.reference_structure_factor
    report = {
        "shape": list(settings.shape),
        "temperature": settings.temperature,
        "seed": settings.seed,
        "device": settings.device,
        "dtype": settings.dtype,
        "stopped": results.stopped or None,
        "unsaved": results.unsaved,
        "free_energy": _free_energy(results),
        "sampling": {
            "exact_structure_factor": results.exact_structure_factor.value,
            "reference_structure_factor": reference and reference.mean,
            "reference_structure_factor_se": reference and reference.standard_error,
            "latent": _sampler(results.samplers.get("latent")),
            "physical": _sampler(results.samplers.get("physical")),
        },
        "training": {
            "steps": results.training.steps,
            "batch": results.training.batch,
            "seconds": results.training.seconds,
            "parameters": results.parameters,
        },
        "versions": _versions(),
    }
    return _plain(report)


def _free_energy(results: Results) -> dict[str, float | int | None]:
    found, bounds = results.estimate, results.bounds
    return {
        "exact": results.exact_free_energy.value,
        "variational": found and found.variational,
        "variational_se": found and found.variational_se,
        "gap": results.gap,
        "relative_error": results.relative_error,
        "lower": bounds and bounds.lower,
        "lower_se": bounds and bounds.lower_se,
        "forward_kl": results.forward_kl,
        "importance": found and found.importance,
        "importance_se": found and found.importance_se,
        "ess": found and found.ess,
        "num_samples": found and found.num_samples,
        "pareto_k": found and found.pareto_k,
    }


def _sampler(run: Sampling | None) -> dict[str, float | int | None] | None:
    if run is None:
        return None
    return {
        "structure_factor": run.summary.mean,
        "mcse": run.summary.mcse,
        "rhat": run.summary.rhat,
        "ess_bulk": run.summary.ess_bulk,
        "ess_per_gradient": run.summary.ess_bulk / run.gradient_evaluations,
        "ess_per_second": run.summary.ess_bulk / run.seconds,
        "acceptance_rate": run.acceptance_rate,
        "gradient_evaluations": run.gradient_evaluations,
        "seconds": run.seconds,
    }


def _plain(value: Any) -> Any:
    """The same tree with None for numbers that JSON cannot say."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "pyro_neuralrg": __version__}
    return found | {name: metadata.version(name) for name in PACKAGES}


def table(results: Results) -> str:
    """The results as one table of text."""
    settings, training = results.settings, results.training
    head = [
        f"{title(results).replace('$_B$', '_B')}, seed {settings.seed}, {settings.dtype} on "
        f"{settings.device}",
        f"trained {training.steps} steps of {training.batch} in {training.seconds:.0f} s, "
        f"{results.parameters} parameters",
    ]
    return "\n".join([*head, "", *_free_energy_rows(results), "", *_sampling_rows(results)])


def _free_energy_rows(results: Results) -> list[str]:
    found = results.estimate
    rows = ["free energy -ln Z (nats)", f"  {'exact':<22}{_exact(results.exact_free_energy)}"]
    if found is None:
        return [*rows, "  not estimated"]
    bound = f"  {'variational bound':<22}{found.variational:.4f} +- {found.variational_se:.4f}"
    if results.gap is not None:
        bound += f"   gap KL(q || pi/Z) {results.gap:.4f}"
    if results.relative_error is not None:
        bound += f"   relative error {results.relative_error:.2e}"
    weighted = f"  {'importance sampling':<22}{found.importance:.4f} +- {found.importance_se:.4f}"
    quality = f"ESS {100 * found.ess:.1f} % of {found.num_samples}, k-hat {found.pareto_k:.2f}"
    return [*rows, bound, *_lower_bound_rows(results), f"{weighted}   {quality}"]


def _lower_bound_rows(results: Results) -> list[str]:
    """What exact samples say, if there are any: reverse KL alone hides modes that q misses."""
    found = results.bounds
    if found is None:
        return []
    if results.forward_kl is None:
        divergence = f"sum of both KLs {found.upper - found.lower:.4f}"
    else:
        divergence = f"KL(pi/Z || q) {results.forward_kl:.4f}"
    return [f"  {'lower bound':<22}{found.lower:.4f} +- {found.lower_se:.4f}   {divergence}"]


def _sampling_rows(results: Results) -> list[str]:
    columns = ("value", "MCSE", "R-hat", "bulk ESS", "ESS/gradient", "ESS/s")
    rows = ["structure factor <(sum_i s_i)^2>/N^2", " " * 12 + "".join(f"{c:>14}" for c in columns)]
    rows.append(f"  {'exact':<10}{_exact(results.exact_structure_factor):>14}")
    if results.reference_structure_factor is not None:
        mean, error = results.reference_structure_factor
        rows.append(f"  {'cluster Monte Carlo':<22}{mean:.5f} +- {error:.5f}")
    for name, run in results.samplers.items():
        cells = (
            f"{run.summary.mean:.5f}",
            f"{run.summary.mcse:.5f}",
            f"{run.summary.rhat:.4f}",
            f"{run.summary.ess_bulk:.0f}",
            f"{run.summary.ess_bulk / run.gradient_evaluations:.2e}",
            f"{run.summary.ess_bulk / run.seconds:.1f}",
        )
        rows.append(f"  {name:<10}" + "".join(f"{cell:>14}" for cell in cells))
    return rows if results.samplers else [*rows, "  not sampled"]


def _exact(exact: Exact) -> str:
    return f"unknown ({exact.reason})" if exact.value is None else f"{exact.value:.6f}"
