# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Finished runs, Pyro's or ours, and importance weights to ArviZ."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from pyro.infer import MCMC
from torch import Tensor

from pyro_neuralrg.diagnostics import program
from pyro_neuralrg.diagnostics.runs import BATCH, NamedTensors, Run, read_run
from pyro_neuralrg.diagnostics.tree import check_names, make_tree
from pyro_neuralrg.mcmc import EnergyTarget, Target, VectorizedMCMC
from pyro_neuralrg.observables import field_observables
from pyro_neuralrg.statistics import LogWeights
from pyro_neuralrg.statistics.draws import as_array

LATTICE_DIMS = {1: ("site",), 2: ("row", "col"), 3: ("row", "col", "layer")}


def to_arviz(
    mcmc: VectorizedMCMC | MCMC,
    observables: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
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
    values = run.model_values()
    sites = program.read_sites(run.model, {name: value[0, 0] for name, value in values.items()})
    groups = {
        "posterior": _posterior(run, observables),
        "unconstrained_posterior": run.latent | run.unconstrained,
        "sample_stats": run.stats,
        "warmup_sample_stats": run.warmup_stats if include_warmup else {},
        "observed_data": sites.observed,
        "log_likelihood": (
            program.log_likelihood(run.model, values, sites) if log_likelihood else {}
        ),
    }
    if include_warmup and not any(value.numel() for value in run.warmup_stats.values()):
        raise ValueError(
            "include_warmup is True for a run of which no warm-up is known; accepted: False, or a "
            "run of VectorizedMCMC with warmup_steps >= 1"
        )
    check_names("dims", dims, sorted({name for group in groups.values() for name in group}))
    named: dict[str, Sequence[str]] = {
        **_model_dims(run, sites),
        **_field_dims(run),
        **(dims or {}),
    }
    arrays = {
        group: {name: value.detach().cpu().numpy() for name, value in variables.items()}
        for group, variables in groups.items()
        if variables
    }
    attrs = {}
    if importance is not None:
        arrays["importance"], attrs["importance"] = _importance_group(importance)
    known = {dim for names in named.values() for dim in names}
    check_names("coords", coords, sorted(known | ({"sample"} if attrs else set())))
    return make_tree(
        arrays,
        dims=named,
        coords=coords,
        attrs={"inference_library": "pyro_neuralrg", **run.attrs},
        group_attrs=attrs,
    )


def weights_to_arviz(
    log_weights: Any,
    observables: Mapping[str, Any] | None = None,
    *,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
) -> Any:
    """Return importance weights as ArviZ's InferenceData (ArviZ 0.x) or DataTree (ArviZ 1.x).

    Args:
        log_weights: ``ln pi(x) - ln q(x)`` of samples x ~ q, numpy array or torch tensor of shape
            ``(num_samples,)``, nats; minus infinity is a weight of zero.
        observables: by name, values ``(num_samples,) + shape`` of the same samples.
        dims: names of the dimensions after ``sample``, by observable.
        coords: values along named dimensions.

    Returns:
        A container with the group ``importance``: ``log_weight``, ``log_weight_normalised`` (their
        exponentials sum to one) and the observables, with the dimension ``sample`` first; and its
        attributes ``pareto_k`` (see :class:`pyro_neuralrg.statistics.LogWeights`), ``ess`` (Kish,
        in samples), ``ess_fraction`` and ``log_partition`` (ln of the mean weight, nats).

    Raises:
        ValueError: if shapes do not fit, a log-weight is NaN or plus infinity, all weights are
            zero, or an observable has a name that is taken.

    Example:
        >>> import numpy as np
        >>> tree = weights_to_arviz(np.zeros(100), {"x": np.arange(100.0)})
        >>> dict(tree.importance.sizes), round(tree.importance.attrs["ess"], 6)
        ({'sample': 100}, 100.0)
    """
    variables, attrs = _importance_group(log_weights)
    for name, values in (observables or {}).items():
        array = as_array(values)
        if name in variables or array.shape[:1] != variables["log_weight"].shape:
            raise ValueError(
                f"observables[{name!r}] has shape {array.shape}; accepted: one value per weight, "
                f"and a name other than {list(variables)}"
            )
        variables[name] = array
    return make_tree(
        {"importance": variables},
        dims=dims,
        coords=coords,
        attrs={"inference_library": "pyro_neuralrg", **attrs},
    )


def default_observables(target: Target | None) -> dict[str, Callable[[Tensor], Tensor]]:
    """Observables of a field with a known energy; none of other models.

    ``energy`` (-ln pi(x), nats), and those of ``potential.observables()``; of an energy function
    those of :func:`~pyro_neuralrg.observables.field_observables`.
    """
    if not isinstance(target, EnergyTarget):
        return {}
    potential = target.lattice_potential
    fitting = field_observables(target.shape) if potential is None else potential.observables()
    return {"energy": target._energy, **fitting}


def _posterior(
    run: Run, observables: Mapping[str, Callable[[Tensor], Tensor]] | None
) -> NamedTensors:
    """The sites and the observables, computed or streamed."""
    if observables is None:
        known = default_observables(run.target) if run.physical else {}
        observables = {name: f for name, f in known.items() if name not in run.streamed}
    values = {**run.streamed, **_evaluate(observables, run)}
    for name in values:
        if name in run.physical:
            raise ValueError(
                f"observables has {name!r}, which is a site of the model; accepted: another name"
            )
    return run.physical | values


def _evaluate(functions: Mapping[str, Callable[[Tensor], Tensor]], run: Run) -> NamedTensors:
    if not functions:
        return {}
    lattices = {} if run.target is None else run.target.lattices
    fields = [name for name in run.physical if name in lattices]
    if len(fields) != 1:
        kept = "" if run.physical else ", or no draws were kept"
        raise ValueError(
            f"observables need exactly one lattice field; the model has {fields}{kept}"
        )
    x = run.physical[fields[0]]
    values = {}
    for name, function in functions.items():
        with torch.no_grad():
            value = torch.cat([function(part) for part in x.flatten(0, 1).split(BATCH)])
        if tuple(value.shape) != (x.shape[0] * x.shape[1],):
            raise ValueError(
                f"observables[{name!r}] returned {tuple(value.shape)} for {len(x.flatten(0, 1))} "
                "fields; accepted: one number of each"
            )
        values[name] = value.unflatten(0, x.shape[:2])
    return values


def _model_dims(run: Run, sites: program.ModelSites) -> dict[str, list[str]]:
    """Names by the plates of a Pyro model; fewer of a log-likelihood, which sums over events."""
    dims = dict(sites.dims)
    for name, size in sites.batch_dims.items():
        if name in dims:
            dims[f"log_likelihood/{name}"] = dims[name][:size]
    for name, value in run.unconstrained.items():
        if name in dims and value.shape != run.physical[name].shape:
            dims[f"unconstrained_posterior/{name}"] = [
                f"{name}_unconstrained_dim_{axis}" for axis in range(value.dim() - 2)
            ]
    return dims


def _field_dims(run: Run) -> dict[str, list[str]]:
    """Names by the lattices of fields and of their latents; distinct ones for distinct shapes."""
    if run.target is None:
        return {}
    lattices = run.target.lattices
    same = len(set(lattices.values())) <= 1
    of = {name: name for name in lattices}
    of.update({latent: name for latent, (name, _) in run.target.flow_sites.items()})
    dims = {}
    for variable, value in (run.physical | run.latent).items():
        shape = lattices.get(of.get(variable, ""), ())
        if len(shape) in LATTICE_DIMS:
            name = of[variable]
            axes = [axis if same else f"{name}_{axis}" for axis in LATTICE_DIMS[len(shape)]]
            plates = [f"{name}_plate_{index}" for index in range(value.dim() - 2 - len(shape))]
            dims[variable] = plates + axes
    return dims


def _importance_group(log_weights: Any) -> tuple[dict[str, NDArray[Any]], dict[str, float]]:
    """Variables and attributes of the group ``importance``."""
    weights = LogWeights(log_weights)
    number, log_mean = len(weights), weights.log_mean.value
    if log_mean == -math.inf:
        raise ValueError(
            f"log_weights are {number} weights of zero; accepted: at least one above zero"
        )
    attrs = {
        "pareto_k": weights.pareto_k,
        "ess": weights.ess * number,
        "ess_fraction": weights.ess,
        "log_partition": log_mean,
    }
    values = weights.values.numpy()
    normalised = values - log_mean - math.log(number)
    return {"log_weight": values, "log_weight_normalised": normalised}, attrs
