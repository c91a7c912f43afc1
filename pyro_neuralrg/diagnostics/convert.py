# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""From a finished run, Pyro's or ours, to ArviZ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from pyro.infer import MCMC
from torch import Tensor

from pyro_neuralrg.diagnostics import program
from pyro_neuralrg.diagnostics.runs import BATCH, Program, Run, read_run
from pyro_neuralrg.diagnostics.tree import make_tree
from pyro_neuralrg.diagnostics.weights import importance_group
from pyro_neuralrg.mcmc import EnergyTarget, Target, VectorizedMCMC
from pyro_neuralrg.observables import field_observables

__all__ = ["default_observables", "to_arviz"]

LATTICE_DIMS = {1: ("site",), 2: ("row", "col"), 3: ("row", "col", "layer")}

Observable = Callable[[Tensor], Tensor]
Groups = dict[str, dict[str, Tensor]]


def to_arviz(
    mcmc: VectorizedMCMC | MCMC,
    observables: Mapping[str, Observable] | None = None,
    *,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    include_warmup: bool = False,
    log_likelihood: bool = False,
    importance: Tensor | None = None,
) -> Any:
    """Return the draws as ArviZ's InferenceData (ArviZ 0.x) or DataTree (ArviZ 1.x).

    Args:
        mcmc: a run :class:`VectorizedMCMC`, or Pyro's own ``MCMC`` of a kernel with a model or a
            LatticePotential's ``potential_fn``, reparameterised by ``FlowReparam`` or not.
        observables: by name, functions of the *physical* field,
            ``batch_shape + shape -> batch_shape``. None takes those of :func:`default_observables`
            that were not computed while sampling; an empty mapping takes none. Observables
            computed while sampling are always there.
        dims: names of the dimensions after chain and draw, by variable, in place of the lattice's
            (row, col) and of the names of the model's plates.
        coords: values along named dimensions, the lattice's or your own; 0, 1, ... if not given.
        include_warmup: add the group ``warmup_sample_stats``.
        log_likelihood: add the group ``log_likelihood``: of each datum of each observed site of a
            Pyro model at each draw, nats.
        importance: log-weights ``(num_samples,)`` of samples of the flow, added as the group
            ``importance`` of :func:`~pyro_neuralrg.diagnostics.weights_to_arviz`.

    Returns:
        Groups

        * ``posterior``: the model's own sites (x, not z) with dimensions chain, draw and site
          (1-d), row, col (2-d) or row, col, layer (3-d), and the observables;
        * ``unconstrained_posterior``: latent sites ``{name}_latent`` of the flows, and the
          unconstrained values of constrained sites, if there are any;
        * ``sample_stats``: lp, energy (the Hamiltonian), acceptance_rate, step_size, n_steps,
          diverging; of Pyro's MCMC, which keeps no more of each draw, lp and diverging;
        * ``observed_data``: of a Pyro model with observed sites;

        and the attributes ``sampler``, ``warmup_steps`` and what else is known of the run as a
        whole; of Pyro's, ``acceptance_rate`` (of each chain) and, if it ran a single chain,
        ``step_size`` and (HMC) ``n_steps``, the same for all its draws.

    Raises:
        RuntimeError: if ``mcmc`` has not been run.
        TypeError: if ``mcmc`` is neither.
        ValueError: if an observable has the name of a site or the wrong shape, or is asked for
            where no field is known; if ``dims`` or ``coords`` name what is not there; if there is
            no warm-up to include (Pyro keeps none) or no log-likelihood to compute.

    Example:
        >>> from pyro_neuralrg import HMC, FreeField, VectorizedMCMC
        >>> mcmc = VectorizedMCMC(HMC(FreeField((2, 3), 0.5)), 20, num_chains=4, progress=False)
        >>> mcmc.run()
        >>> idata = to_arviz(mcmc, coords={"row": ["top", "bottom"]})
        >>> idata.posterior["x"].sel(row="top").dims
        ('chain', 'draw', 'col')
    """
    run = read_run(mcmc)
    groups = {
        "posterior": _posterior(run, observables),
        "unconstrained_posterior": run.latent | run.unconstrained,
        "sample_stats": run.stats,
    }
    if include_warmup:
        groups["warmup_sample_stats"] = _warmup(run)
    names = _lattice_dims(run)
    if run.program is not None:
        plates = _add_data(groups, run, run.program, log_likelihood)
        names = {**plates, **names}
    elif log_likelihood:
        raise ValueError(
            "log_likelihood is True for a run without a Pyro model; accepted: False, or a run of "
            "a Pyro model with observed sites"
        )
    arrays = {
        group: {name: value.detach().cpu().numpy() for name, value in variables.items()}
        for group, variables in groups.items()
        if variables
    }
    names = {**names, **_given_dims(dims, groups)}
    attrs = {}
    if importance is not None:
        weights = importance_group(importance)
        arrays["importance"] = weights.variables
        names.update({f"importance/{name}": value for name, value in weights.dims.items()})
        attrs["importance"] = weights.attrs
    _check_coords(coords, names.values())
    return make_tree(
        arrays,
        dims=names,
        coords=coords,
        attrs={"inference_library": "pyro_neuralrg", **run.attrs},
        group_attrs=attrs,
    )


def default_observables(target: Target | None) -> dict[str, Observable]:
    """Observables of a field with a known energy; none of other models.

    ``energy`` (-ln pi(x), nats), and those of ``potential.observables()``; of an energy function
    those of :func:`~pyro_neuralrg.observables.field_observables`.
    """
    if not isinstance(target, EnergyTarget):
        return {}
    potential = target.lattice_potential
    fitting = field_observables(target.shape) if potential is None else potential.observables()
    return {"energy": target._energy, **fitting}


def _posterior(run: Run, observables: Mapping[str, Observable] | None) -> dict[str, Tensor]:
    """The sites and the observables, computed or streamed."""
    if observables is None:
        known = default_observables(run.target) if run.physical else {}
        functions = {name: f for name, f in known.items() if name not in run.streamed}
    else:
        functions = dict(observables)
    posterior = dict(run.physical)
    for name, values in {**run.streamed, **_evaluate(functions, run)}.items():
        if name in posterior:
            raise ValueError(
                f"observables has {name!r}, which is a site of the model; accepted: another name"
            )
        posterior[name] = values
    return posterior


def _evaluate(functions: Mapping[str, Observable], run: Run) -> dict[str, Tensor]:
    if not functions:
        return {}
    fields = [
        name for name in run.physical if run.target is not None and name in run.target.lattices
    ]
    if len(fields) != 1:
        kept = "" if run.physical else ", or no draws were kept"
        raise ValueError(
            f"observables need exactly one lattice field; the model has {fields}{kept}"
        )
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


def _warmup(run: Run) -> dict[str, Tensor]:
    if not any(value.numel() for value in run.warmup_stats.values()):
        raise ValueError(
            "include_warmup is True for a run of which no warm-up is known; accepted: False, or a "
            "run of VectorizedMCMC with warmup_steps >= 1"
        )
    return run.warmup_stats


def _add_data(groups: Groups, run: Run, of: Program, log_likelihood: bool) -> dict[str, list[str]]:
    """Add observed data and log-likelihoods to the groups; return names of dimensions."""
    values = run.values_of_sites()
    first = {name: value[0, 0] for name, value in values.items()}
    sites = program.read_sites(of, first)
    groups["observed_data"] = sites.observed
    dims = dict(sites.dims)
    if log_likelihood:
        groups["log_likelihood"] = program.log_likelihood(of, values, sites)
        for name, size in sites.batch_dims.items():
            if name in dims:
                dims[f"log_likelihood/{name}"] = dims[name][:size]
    for name, value in run.unconstrained.items():
        if name in dims and value.shape != run.physical[name].shape:
            dims[f"unconstrained_posterior/{name}"] = [
                f"{name}_unconstrained_dim_{axis}" for axis in range(value.dim() - 2)
            ]
    return dims


def _lattice_dims(run: Run) -> dict[str, list[str]]:
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


def _given_dims(dims: Mapping[str, Sequence[str]] | None, groups: Groups) -> dict[str, list[str]]:
    known = {name for variables in groups.values() for name in variables}
    unknown = sorted(set(dims or {}) - known)
    if unknown:
        raise ValueError(f"dims has {unknown}; accepted: names of the variables {sorted(known)}")
    return {name: list(names) for name, names in (dims or {}).items()}


def _check_coords(
    coords: Mapping[str, Sequence[Any]] | None, dims: Iterable[Sequence[str]]
) -> None:
    known = {dim for names in dims for dim in names}
    unknown = sorted(set(coords or {}) - known)
    if unknown:
        raise ValueError(f"coords has {unknown}; accepted: the dimensions {sorted(known)}")
