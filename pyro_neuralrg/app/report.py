# SPDX-License-Identifier: Apache-2.0
"""The results of a run: the table, report.json, the flow, the samples and the figures.

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

import torch

from pyro_neuralrg import __version__, plotting
from pyro_neuralrg.app.ising import SPACES, Results, Sampling
from pyro_neuralrg.diagnostics import save_tree
from pyro_neuralrg.files.format import remove_leftovers, replacing, writing
from pyro_neuralrg.flow_file import save
from pyro_neuralrg.plotting.style import legend_beside, png
from pyro_neuralrg.potentials import IsingDual

UNFINISHED = "unfinished"  # folder of a run that has not yet taken the place of an earlier one
DOTS_PER_INCH = 150
NUM_PICTURES = 4  # fields of each sampler
FILES = (
    "report.json", "flow.pt", "samples.nc", "free_energy.png", "structure_factor.png",
    "configurations.png",
)  # fmt: skip
PACKAGES = ("torch", "pyro-ppl", "numpy", "scipy", "arviz", "matplotlib")


@dataclass
class Output:
    """The folder that a run writes to.

    Files of an earlier run stay until all those of this one are there, in a folder within.
    """

    folder: Path
    earlier: bool = False  # files of an earlier run are there
    replaced: bool = False  # they were, and those of this run have taken their place
    written: list[str] = field(default_factory=list)  # names of the files of this run
    begun: float = field(default_factory=time.time)  # start of this run, seconds since the epoch

    @classmethod
    def prepare(cls, folder: Path) -> Output:
        """Make the folder and see that it can be written, before any work is done."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
            for name in FILES:
                if (folder / name).is_dir():
                    raise OSError(f"{name} in it is a folder")
        except OSError as error:
            seen = f"{folder}: {error.strerror or error}"
            raise OSError(f"argument --out: {seen}; accepted: a writable folder") from None
        return cls(folder, earlier=any((folder / name).exists() for name in FILES))

    @property
    def place(self) -> Path:
        """The folder of the files of this run."""
        return self.folder / UNFINISHED if self.earlier else self.folder

    def told(self) -> str:
        """Where the files of this run are, and what became of an earlier run's."""
        line = f"written to {self.place}: {', '.join(self.written)}"
        if self.replaced:
            return f"{line}, in place of the files of an earlier run"
        kept = f"; {self.folder} keeps the files of an earlier run, as this one has not ended well"
        return line + (kept if self.earlier else "")

    def write_training(self, results: Results) -> None:
        """Save the trained flow.

        Half-written files stay if they were written to since this run began: by another one, maybe.
        """
        with self._writing("flow.pt") as path:
            for name in FILES:
                (self.place / name).unlink(missing_ok=True)
                for folder in {self.folder, self.place}:
                    remove_leftovers(folder, name, self.begun)
            save(path, results.training.flow, metadata=_about(results))

    def write(self, results: Results) -> None:
        """Write all else that the results hold, and replace the files of an earlier run."""
        report = as_json(results)
        with self._writing("report.json") as path, writing(path) as stream:
            stream.write((json.dumps(report, indent=2, allow_nan=False) + "\n").encode())
        if results.estimate is not None:  # now with the gap
            with self._writing("flow.pt") as path:
                save(path, results.training.flow, metadata=_about(results))
        if "latent" in results.samplers:
            with self._writing("samples.nc") as path, replacing(path) as temporary:
                save_tree(results.samplers["latent"].idata, temporary)
        self._write_figures(results)
        if self.earlier and not results.stopped:
            for name in FILES:
                if name in self.written:
                    (self.place / name).replace(self.folder / name)
                else:
                    (self.folder / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it holds something else
                self.place.rmdir()
            self.earlier, self.replaced = False, True

    def _write_figures(self, results: Results) -> None:
        history, found = results.training.history, results.estimate
        draws = {name: run.idata.posterior for name, run in results.samplers.items()}
        if len(history) == 0:
            return
        ax = plotting.plot_free_energy(
            history.free_energy,
            standard_error=history.free_energy_se,
            annealing_steps=int((history.temperature_factor > 1.0).sum()),
            exact=results.exact_free_energy.value,
            estimate=None if found is None else (found.importance, found.importance_se),
        )
        self._write_figure("free_energy.png", ax, title(results))
        if not draws:
            return
        ax = plotting.plot_structure_factor(
            {name: found["structure_factor"].values for name, found in draws.items()},
            exact=results.exact_structure_factor.value,
        )
        if results.reference is not None:
            mean, error = results.reference
            words = "cluster Monte Carlo"
            ax.axhspan(mean - error, mean + error, color="black", alpha=0.3, label=words)
            legend_beside(ax)
        self._write_figure("structure_factor.png", ax, title(results))
        fields = {name: found["x"].values[:NUM_PICTURES, -1] for name, found in draws.items()}
        count = min(len(values) for values in fields.values())
        settings = results.settings
        target = IsingDual(settings.shape, temperature=settings.temperature)
        spins = {
            name: target.sample_spins(torch.as_tensor(x), settings.seed)
            for name, x in fields.items()
        }
        axes = plotting.plot_configurations(fields, count=count, spins=spins)
        self._write_figure("configurations.png", axes[0, 0], "fields, each with spins given it")

    def _write_figure(self, name: str, ax: Any, above: str) -> None:
        ax.figure.suptitle(above)  # the axes' own title says what has not converged
        with self._writing(name) as path, writing(path) as stream:
            stream.write(png(ax.figure, DOTS_PER_INCH))

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        """The path of a file of this run, written in the block; an OSError names it."""
        path = self.place / name
        try:
            path.parent.mkdir(exist_ok=True)
            yield path
        except OSError as error:
            raise OSError(
                f"{error.filename or path} cannot be written ({error.strerror or error})"
            ) from None
        if name not in self.written:
            self.written.append(name)


def title(results: Results) -> str:
    """The model in one line: lattice and temperature."""
    sides = " x ".join(map(str, results.settings.shape))
    return f"Ising model {sides}, T = {results.settings.temperature:.6g} J/k$_B$"


def as_json(results: Results) -> dict[str, Any]:
    """The report, with None for what is not known, not finite, or was not reached."""
    settings, training = results.settings, results.training
    reference, error = results.reference or (None, None)
    report = {
        "shape": list(settings.shape),
        **{name: getattr(settings, name) for name in ("temperature", "seed", "device", "dtype")},
        "stopped": results.stopped or None,
        "unsaved": results.unsaved,
        "free_energy": _free_energy(results),
        "sampling": {
            "exact_structure_factor": results.exact_structure_factor.value,
            "reference_structure_factor": reference,
            "reference_structure_factor_se": error,
            **dict.fromkeys(SPACES),
            **{space: _sampler(run) for space, run in results.samplers.items()},
        },
        "training": {
            **{name: getattr(training, name) for name in ("steps", "batch", "seconds")},
            "parameters": results.parameters,
        },
        "versions": {
            "python": platform.python_version(),
            "pyro_neuralrg": __version__,
            **{name: metadata.version(name) for name in PACKAGES},
        },
    }
    return json.loads(json.dumps(report), parse_constant=lambda _: None)


def _about(results: Results) -> dict[str, Any]:
    """The metadata of the flow; its gap is None before it has been estimated."""
    report = as_json(results)
    found = {name: report[name] for name in ("shape", "temperature", "seed")}
    found |= {"steps": report["training"]["steps"], "gap": report["free_energy"]["gap"]}
    return found | {"version": __version__}


def _free_energy(results: Results) -> dict[str, float]:
    """Free energies in nats, NaN where unknown; ``ess`` is a fraction of the samples.

    ``gap`` is KL(q || pi/Z). A mode that the flow misses shows in ``forward_kl``, KL(pi/Z || q).
    """
    exact = results.exact_free_energy.value
    exact = math.nan if exact is None else exact
    names = "variational variational_se importance importance_se ess num_samples pareto_k"
    found = {name: getattr(results.estimate, name, math.nan) for name in names.split()}
    found |= {name: getattr(results.bounds, name, math.nan) for name in ("lower", "lower_se")}
    gap = found["variational"] - exact
    relative = gap / abs(exact) if exact else math.nan
    divergences = {"gap": gap, "relative_error": relative, "forward_kl": exact - found["lower"]}
    return {"exact": exact, **found, **divergences}


def _sampler(run: Sampling) -> dict[str, Any]:
    """The structure factor by one sampler; ``ess_bulk`` counts effective draws of all chains."""
    gradients, seconds = int(run.mcmc.gradient_evaluations.draws), run.mcmc.seconds.draws
    return {
        "method": run.method,
        "structure_factor": run.summary.mean,
        **{name: getattr(run.summary, name) for name in ("mcse", "rhat", "ess_bulk")},
        "ess_per_gradient": run.summary.ess_bulk / gradients,  # a jump counts as one
        "ess_per_second": run.summary.ess_bulk / seconds,
        "acceptance_rate": float(run.mcmc.sample_stats["acceptance_rate"].mean()),
        "gradient_evaluations": gradients,
        "seconds": seconds,
    }


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


def _free_energy_rows(results: Results) -> Iterator[str]:
    found, between = _free_energy(results), results.bounds

    def row(words: str, name: str, *more: str) -> str:
        value = f"  {words:<22}{found[name]:.4f} +- {found[f'{name}_se']:.4f}"
        return "   ".join([value, *more])

    yield "free energy -ln Z of the field (nats)"
    yield f"  {'exact':<22}{results.exact_free_energy}"
    if results.estimate is None:
        yield "  not estimated"
        return
    known = results.exact_free_energy.value is not None
    relative = f"relative error {found['relative_error']:.2e}"
    gap = (f"gap KL(q || pi/Z) {found['gap']:.4f}", relative) if known else ()
    yield row("variational bound", "variational", *gap)
    if between is not None:
        both = f"sum of both KLs {between.upper - between.lower:.4f}"
        forward = f"KL(pi/Z || q) {found['forward_kl']:.4f}"
        yield row("lower bound", "lower", forward if known else both)
    quality = f"ESS {found['ess']:.1%} of {found['num_samples']}, k-hat {found['pareto_k']:.2f}"
    yield row("importance sampling", "importance", quality.replace("%", " %"))


def _sampling_rows(results: Results) -> Iterator[str]:
    columns = ("value", "MCSE", "R-hat", "bulk ESS", "ESS/gradient", "ESS/s")
    yield "structure factor <(sum_i s_i)^2>/N^2"
    yield " " * 12 + "".join(f"{column:>14}" for column in columns)
    yield f"  {'exact':<10}{results.exact_structure_factor!s:>14}"
    if results.reference is not None:
        mean, error = results.reference
        yield f"  {'cluster Monte Carlo':<22}{mean:.5f} +- {error:.5f}"
    formats = {"structure_factor": ".5f", "mcse": ".5f", "rhat": ".4f", "ess_bulk": ".0f"}
    formats |= {"ess_per_gradient": ".2e", "ess_per_second": ".1f"}
    for name, run in results.samplers.items():
        row = _sampler(run)
        yield f"  {name:<10}" + "".join(f"{row[key]:>14{form}}" for key, form in formats.items())
    if not results.samplers:
        yield "  not sampled"
