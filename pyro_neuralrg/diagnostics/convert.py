# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""From a finished run, Pyro's or ours, to ArviZ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from pyro.infer import HMC, MCMC, NUTS
from torch import Tensor

from pyro_neuralrg import observables as obs
from pyro_neuralrg.diagnostics.tree import make_tree
from pyro_neuralrg.infer.mcmc import EnergyTarget, Target, VectorizedMCMC, as_target

__all__ = ["default_observables", "to_arviz"]

LATTICE_DIMS = {1: ("site",), 2: ("row", "col"), 3: ("row", "col", "layer")}
#: Configurations whose observables are computed at once.
BATCH = 1024

Observable = Callable[[Tensor], Tensor]


class _Run(NamedTuple):
    """What is known of a run: tensors of shape ``(chains, draws, ...)``."""

    physical: dict[str, Tensor]
    latent: dict[str, Tensor]
    stats: dict[str, Tensor]
    attrs: dict[str, Any]
    target: Target | None


def to_arviz(
    mcmc: VectorizedMCMC | MCMC, observables: Mapping[str, Observable] | None = None
) -> Any:
    """Return the draws as ArviZ's InferenceData (ArviZ 0.x) or DataTree (ArviZ 1.x).

    Args:
        mcmc: a run :class:`VectorizedMCMC`, or Pyro's own ``MCMC`` of a kernel with a model or a
            LatticePotential's ``potential_fn``, reparameterised by ``FlowReparam`` or not.
        observables: by name, functions of the *physical* field,
            ``batch_shape + shape -> batch_shape``. None takes those of :func:`default_observables`;
            an empty mapping takes none.

    Returns:
        Groups

        * ``posterior``: the model's own sites (x, not z) with dimensions chain, draw and site
          (1-d), row, col (2-d) or row, col, layer (3-d), and the observables;
        * ``unconstrained_posterior``: latent sites ``{name}_latent`` of the flows, if there are
          any;
        * ``sample_stats``: lp, energy (the Hamiltonian), acceptance_rate, step_size, n_steps,
          diverging; of Pyro's MCMC, which keeps no more of each draw, lp and diverging.

        and the attributes ``sampler``, ``warmup_steps`` and what else is known of the run as a
        whole; of Pyro's, ``acceptance_rate`` (of each chain) and, if it ran a single chain,
        ``step_size`` and (HMC) ``n_steps``, the same for all its draws.

    Raises:
        RuntimeError: if ``mcmc`` has not been run.
        TypeError: if ``mcmc`` is neither.
        ValueError: if an observable has the name of a site or the wrong shape, or is asked for
            where no field is known.
    """
    if isinstance(mcmc, VectorizedMCMC):
        run = _of_vectorized(mcmc)
    elif isinstance(mcmc, MCMC):
        run = _of_pyro(mcmc)
    else:
        raise TypeError(
            f"mcmc is a {type(mcmc).__name__}; accepted: a VectorizedMCMC or pyro.infer.MCMC"
        )
    functions = default_observables(run.target) if observables is None else dict(observables)
    posterior = dict(run.physical)
    for name, values in _evaluate(functions, run).items():
        if name in posterior:
            raise ValueError(
                f"observables has {name!r}, which is a site of the model; accepted: another name"
            )
        posterior[name] = values
    groups = {
        "posterior": posterior,
        "unconstrained_posterior": run.latent,
        "sample_stats": run.stats,
    }
    arrays = {
        group: {name: value.detach().cpu().numpy() for name, value in variables.items()}
        for group, variables in groups.items()
        if variables
    }
    return make_tree(
        arrays, dims=_dims(run), attrs={"inference_library": "pyro_neuralrg", **run.attrs}
    )


def default_observables(target: Target | None) -> dict[str, Observable]:
    """Observables of a field with a known energy; none of other models.

    Always ``magnetisation``, ``structure_factor`` and ``energy`` (-ln pi(x), nats). The first two
    are those of the field, except for the dual Ising model, where they are those of the spins,
    averaged over the spins given x; it adds ``internal_energy`` (per site, in units of J).
    """
    if not isinstance(target, EnergyTarget):
        return {}
    shape, potential = target.shape, target.lattice_potential
    functions: dict[str, Observable] = {"energy": target._energy}
    if potential is not None and hasattr(potential, "sample_spins"):
        model: Any = potential
        couplings, field, temperature = model.couplings, model.field, model.temperature

        def bias(x: Tensor) -> float | Tensor:
            return 0.0 if field is None else torch.as_tensor(field).to(x) / temperature

        functions["magnetisation"] = lambda x: obs.magnetisation(obs.spin_mean(x, bias(x)), shape)
        functions["structure_factor"] = lambda x: obs.structure_factor(x, shape, bias(x))
        functions["internal_energy"] = lambda x: obs.internal_energy(
            obs.spin_mean(x, bias(x)), shape, couplings, bias(x) * temperature, model.boundary
        )
    else:
        functions["magnetisation"] = lambda x: obs.magnetisation(x, shape)
        functions["structure_factor"] = lambda x: obs.spin_structure_factor(x, shape)
    return functions


def _of_vectorized(mcmc: VectorizedMCMC) -> _Run:
    samples = mcmc.get_samples(group_by_chain=True)
    target = mcmc.kernel.target
    latent = {name: samples.pop(name) for name in list(target.latent(mcmc.positions))}
    attrs = {
        "sampler": mcmc.kernel.name,
        "seed": mcmc.seed,
        "warmup_steps": mcmc.warmup_steps,
        "thinning": mcmc.thinning,
        "gradient_evaluations_warmup": mcmc.gradient_evaluations.warmup,
        "gradient_evaluations": mcmc.gradient_evaluations.draws,
        "seconds_warmup": mcmc.seconds.warmup,
        "seconds": mcmc.seconds.draws,
    }
    return _Run(samples, latent, mcmc.sample_stats, attrs, target)


def _of_pyro(mcmc: MCMC) -> _Run:
    if mcmc._samples is None:
        raise RuntimeError("there are no draws; call run() first")
    samples = mcmc.get_samples(group_by_chain=True)
    attrs = _pyro_attrs(mcmc)
    first = next(iter(samples.values()))
    stats = {"diverging": torch.zeros(first.shape[:2], dtype=torch.bool)}
    kept: Any = mcmc._diagnostics
    for chain, diagnostics in enumerate(kept):
        for draw in (diagnostics or {}).get("divergences", []):
            stats["diverging"][chain, draw] = True
    model = mcmc.kernel.model
    target = as_target(mcmc.kernel.potential_fn if model is None else model)
    if model is None and not isinstance(target, EnergyTarget):
        return _Run(samples, {}, stats, attrs, None)  # a bare potential_fn: nothing more is known
    if not isinstance(target, EnergyTarget):
        args: Any = mcmc._args
        kwargs: Any = mcmc._kwargs
        target = target.setup(*args, **kwargs)
    positions = target.from_constrained(samples)
    flat = positions.flatten(0, 1)
    lp = torch.cat([-target.energy(part) for part in flat.split(BATCH)])
    physical = {
        name: value.unflatten(0, positions.shape[:2])
        for name, value in target.physical(flat).items()
    }
    latent = target.latent(positions)
    return _Run(
        physical, latent, {"lp": lp.unflatten(0, positions.shape[:2])} | stats, attrs, target
    )


def _pyro_attrs(mcmc: MCMC) -> dict[str, Any]:
    """What Pyro knows of a run as a whole: its kernels keep no acceptance of single draws."""
    kernel: Any = mcmc.kernel
    attrs: dict[str, Any] = {"sampler": type(kernel).__name__, "warmup_steps": mcmc.warmup_steps}
    kept: Any = mcmc._diagnostics
    if all("acceptance rate" in (diagnostics or {}) for diagnostics in kept):
        attrs["acceptance_rate"] = [float(known["acceptance rate"]) for known in kept]
    if mcmc.num_chains == 1 and isinstance(kernel, HMC):  # several ran as copies, now gone
        attrs["step_size"] = float(kernel.step_size)
        if not isinstance(kernel, NUTS):
            attrs["n_steps"] = int(kernel.num_steps)
    return attrs


def _evaluate(functions: Mapping[str, Observable], run: _Run) -> dict[str, Tensor]:
    if not functions:
        return {}
    fields = [
        name for name in run.physical if run.target is not None and name in run.target.lattices
    ]
    if len(fields) != 1:
        raise ValueError(f"observables need exactly one lattice field; the model has {fields}")
    x = run.physical[fields[0]]
    values = {}
    for name, function in functions.items():
        with torch.no_grad():
            parts = [function(part) for part in x.flatten(0, 1).split(BATCH)]
        value = torch.cat(parts)
        if tuple(value.shape) != (x.shape[0] * x.shape[1],):
            raise ValueError(
                f"observables[{name!r}] returned {tuple(parts[0].shape)} for a batch of {len(x[0])}"
            )
        values[name] = value.unflatten(0, x.shape[:2])
    return values


def _dims(run: _Run) -> dict[str, list[str]]:
    """Names of the dimensions after chain and draw; distinct ones for fields of distinct shapes."""
    if run.target is None:
        return {}
    lattices = run.target.lattices
    same = len(set(lattices.values())) <= 1
    dims = {}
    for name, shape in lattices.items():
        if len(shape) not in LATTICE_DIMS:
            continue
        axes = [axis if same else f"{name}_{axis}" for axis in LATTICE_DIMS[len(shape)]]
        for variable, group in ((name, run.physical), (f"{name}_latent", run.latent)):
            if variable in group:
                plates = group[variable].dim() - 2 - len(shape)
                dims[variable] = [f"{name}_plate_{index}" for index in range(plates)] + axes
    return dims
