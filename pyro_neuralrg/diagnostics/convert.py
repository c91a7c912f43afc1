# SPDX-License-Identifier: Apache-2.0
"""Finished runs, Pyro's or ours, and importance weights to ArviZ, and draws to pyerrors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.infer import MCMC
from torch import Tensor

from pyro_neuralrg.arguments import LARGEST_SEED, check_integer
from pyro_neuralrg.diagnostics.model_groups import BATCH, NamedTensors
from pyro_neuralrg.diagnostics.runs import Run, read_run
from pyro_neuralrg.diagnostics.tree import check_names, dim_names, make_tree, variables_of
from pyro_neuralrg.lattice import MAX_DIM
from pyro_neuralrg.mcmc import EnergyTarget, VectorizedMCMC
from pyro_neuralrg.mcmc.results import observed
from pyro_neuralrg.observables import field_observables
from pyro_neuralrg.statistics import LogWeights
from pyro_neuralrg.statistics.draws import as_array, as_finite_draws

LIBRARY = {"inference_library": "pyro_neuralrg"}
MIN_OBS_DRAWS = 5  # pyerrors takes no shorter chains
LATTICE_DIMS = {1: ("site",), 2: ("row", "col"), 3: ("row", "col", "layer")}


def to_arviz(
    mcmc: Any,
    observables: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    *,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    include_warmup: bool = False,
    log_likelihood: bool = False,
    prior: int = 0,
    posterior_predictive: bool = False,
    seed: int = 0,
    importance: Tensor | LogWeights | None = None,
) -> Any:
    """Return the draws as ArviZ's InferenceData (ArviZ 0.x) or DataTree (ArviZ 1.x).

    Args:
        mcmc: a run :class:`VectorizedMCMC`, :class:`~pyro_neuralrg.sampling.Samples`, or Pyro's own
            ``MCMC`` of a kernel with a model or a LatticePotential's ``potential_fn``.
        observables: by name, functions of the *physical* field, ``batch_shape + shape`` to
            ``batch_shape + (...)``, beside those computed while sampling. None takes the energy and
            ``potential.observables()``.
        dims: names of the dimensions after chain and draw, by variable.
        coords: numbers, strings or times along named dimensions; 0, 1, ... if not given.
        include_warmup: add the group ``warmup_sample_stats``.
        log_likelihood: add the group ``log_likelihood``: of each datum of each observed site of a
            Pyro model at each draw, nats, as ``az.loo`` and ``az.compare`` take it.
        prior: draws of the model's prior in the groups ``prior`` and ``prior_predictive``.
        posterior_predictive: add the group ``posterior_predictive``: data drawn anew at each draw,
            and ``predictions`` of all cells of sites of which some are hidden.
        seed: of these draws.
        importance: log-weights of samples of the flow, for the group of :func:`weights_to_arviz`.

    Returns:
        The groups

        * ``posterior``: the model's own sites (x, not z) with dimensions chain, draw and site
          (1-d), row, col (2-d) or row, col, layer (3-d) or the plates', and the observables;
        * ``unconstrained_posterior``: latents ``{name}_latent`` of flows, and unconstrained values;
        * ``sample_stats``: lp, energy (the Hamiltonian), acceptance_rate, step_size, n_steps,
          diverging; of Pyro's MCMC, which keeps no more of each draw, lp and diverging;
        * ``observed_data``: of a Pyro model with observed sites;
        * ``constant_data``: tensors and arrays among the model's arguments that are not observed;

        and attributes of the run as a whole. Each cell of an observed site is one datum, also of
        an event that ``to_event`` made; what a joint density binds together, such as a
        ``MultivariateNormal``, is one. Cells that a mask hides are no data: where there are some,
        those of site ``y`` that are seen lie along a dimension ``y_seen``, with their places as
        coordinates ``y_row``, ... beside it.

        Weighted draws are resampled by their weights into one chain, with copies, whose R-hat and
        ESS mean nothing; the weights, with their k-hat and ESS, are in the group ``importance``.
        Means by the weights themselves are more precise (:meth:`Samples.mean`).

    Raises:
        RuntimeError: if ``mcmc`` has not been run.
        ValueError: also if an observable has the name of a site, coordinates are of mixed types,
            or a warm-up is wanted where none is known (Pyro keeps none), or draws of a prior that
            is improper.

    Warns:
        UserWarning: if names had to be changed, as of a site ``draw`` or ``x/y``
            (:func:`make_tree`); of draws of the prior of a model with factors, which they leave
            out, or of intrinsic fields, which sum to zero; of log-likelihoods under
            ``poutine.scale``, which is not multiplied in: each is the density of one datum, as
            leave-one-out predicts it, though the draws know s times it.

    Example:
        >>> from pyro_neuralrg import HMC, FreeField, VectorizedMCMC
        >>> mcmc = VectorizedMCMC(HMC(FreeField((2, 3), 0.5)), 20, num_chains=4, progress=False)
        >>> mcmc.run()
        >>> idata = to_arviz(mcmc, coords={"row": ["top", "bottom"]})
        >>> idata.posterior["x"].sel(row="top").dims
        ('chain', 'draw', 'col')
    """
    run = read_run(mcmc)
    model = run.model_groups()
    groups = {
        "posterior": _posterior(run, observables),
        "unconstrained_posterior": run.latent | run.unconstrained,
        "sample_stats": run.stats,
        "warmup_sample_stats": run.warmup_stats if include_warmup else {},
        "observed_data": model.observed,
        "constant_data": model.constants(),
        "log_likelihood": model.log_likelihood() if log_likelihood else {},
    }
    if include_warmup and not any(value.numel() for value in run.warmup_stats.values()):
        raise ValueError(
            "include_warmup is True for a run of which no warm-up is known; accepted: False, or a "
            "run of VectorizedMCMC with warmup_steps >= 1"
        )
    seed = check_integer("seed", seed, 0, LARGEST_SEED)
    if posterior_predictive:
        names = "posterior_predictive", "predictions"
        groups |= zip(names, model.posterior_predictive(seed), strict=True)
    if check_integer("prior", prior, 0):
        groups |= zip(("prior", "prior_predictive"), model.prior(prior, seed), strict=True)
    check_names("dims", dims, sorted({name for group in groups.values() for name in group}))
    named, labels = model.dims(dims or {}, coords or {})
    named |= _unconstrained_dims(run, named) | _field_dims(run)
    named |= {name: list(names) for name, names in (dims or {}).items()}
    arrays = {
        group: {name: value.detach().cpu().numpy() for name, value in variables.items()}
        for group, variables in groups.items()
        if variables
    }
    attrs = {}
    importance = run.weights if importance is None else importance
    if importance is not None:
        arrays["importance"], attrs["importance"] = _importance_group(importance)
    known = {
        dim
        for group, variables in arrays.items()
        for name, value in variables.items()
        for dim in dim_names(group, name, value.shape, named)
    }
    known |= {dim for names in named.values() for dim in names}
    check_names("coords", coords, sorted(known - {"chain", "draw"}))
    return make_tree(arrays, named, coords, {**LIBRARY, **run.attrs}, attrs, labels)


def as_tree(run: Any) -> Any:
    """ArviZ's container of a run, or of what can make one; all else as it is."""
    if isinstance(run, VectorizedMCMC | MCMC):
        return to_arviz(run)
    make = getattr(run, "to_arviz", None)
    return make() if callable(make) else run


def weights_to_arviz(
    log_weights: Any,
    observables: Mapping[str, Any] | None = None,
    *,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
) -> Any:
    """Return importance weights as ArviZ's InferenceData (ArviZ 0.x) or DataTree (ArviZ 1.x).

    Of :class:`~pyro_neuralrg.statistics.LogWeights` in nats, shape ``(num_samples,)``, and by name
    observables of the same samples, ``(num_samples,) + shape``, with dims and coords as of
    :func:`make_tree`.

    Returns:
        The group ``importance``: ``log_weight``, ``log_weight_normalised`` (their exponentials sum
        to one) and the observables, with the dimension ``sample`` first; and its attributes
        ``pareto_k``, ``ess`` (Kish, in samples), ``ess_fraction``, ``log_partition`` (ln of the
        mean weight, nats) and ``log_partition_se``, its error with a heavy tail as fitted: above
        a k-hat of 0.7 not to be trusted, as :func:`diagnose` says, above 1 infinite, NaN of copies.

    Raises:
        ValueError: also if all weights are zero.

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
    return make_tree({"importance": variables}, dims, coords, {**LIBRARY, **attrs})


def to_pyerrors(
    run: Any, var_names: Sequence[str] | None = None, *, ensemble: str = "run"
) -> dict[str, Any]:
    """Return the draws as ``pyerrors.Obs`` by name, each chain a replicum of one ensemble.

    Needs pyerrors: ``pip install "pyro-neuralrg[pyerrors]"``. Functions of these observables carry
    their errors and correlations::

        m2 = to_pyerrors(mcmc, ["structure_factor"])["structure_factor"]
        susceptibility = 64 / temperature * m2
        susceptibility.gamma_method()

    Args:
        run: :class:`VectorizedMCMC`, Pyro's ``MCMC``, or ArviZ's container with ``posterior``.
        var_names: variables of the posterior; None takes all.
        ensemble: name of the ensemble; its replica are ``run|r0``, ``run|r1``, ...

    Returns:
        An Obs for each scalar, an object array of them, of the shape of one draw, for each field.

    Raises:
        ImportError: without pyerrors.
        ValueError: also if a draw is not finite, or a chain has fewer than five.

    References:
        F. Joswig, S. Kuberski, J. T. Kuhlmann, J. Neuendorf, Comput. Phys. Commun. 288, 108750
        (2023).
    """
    try:
        import pyerrors
    except ImportError as error:
        needed = 'to_pyerrors needs pyerrors; pip install "pyro-neuralrg[pyerrors]"'
        raise ImportError(needed) from error
    found = {}
    for name, values in variables_of(as_tree(run), "posterior", var_names).items():
        chains, draws, *shape = values.shape
        series = as_finite_draws(values.reshape(chains, -1), name).reshape(chains, draws, -1)
        if draws < MIN_OBS_DRAWS:
            raise ValueError(f"{name} has {draws} draws a chain; accepted: at least five")
        replica = [f"{ensemble}|r{chain}" for chain in range(chains)]
        table = np.empty(series.shape[2], dtype=object)
        for site in range(len(table)):
            table[site] = pyerrors.Obs(list(series[..., site]), replica)
        found[name] = table.reshape(shape) if shape else table[0]
    if not found:
        raise ValueError(
            f"run, a {type(run).__name__}, has no draws; accepted: a run VectorizedMCMC or MCMC, "
            "or ArviZ's container with the group posterior"
        )
    return found


def _posterior(
    run: Run, observables: Mapping[str, Callable[[Tensor], Tensor]] | None
) -> NamedTensors:
    """The sites and the observables, computed or streamed."""
    functions = _default_observables(run) if observables is None else observables
    values = dict(run.streamed)
    lattices = {} if run.target is None else run.target.lattices
    fields = [x for name, x in run.physical.items() if name in lattices]
    if functions and len(fields) != 1:
        raise ValueError(
            f"observables need the draws of exactly one lattice field; the run has {len(fields)}"
        )
    batches = fields[0].flatten(0, 1).split(BATCH) if functions else ()
    parts = [observed(functions, {"x": part}, ["x"]) for part in batches]
    for name in functions:
        value = torch.cat([part[name] for part in parts])
        values[name] = value.unflatten(0, fields[0].shape[:2])
    if taken := sorted(values.keys() & run.physical.keys()):
        raise ValueError(f"observables has {taken}, sites of the model; accepted: other names")
    return run.physical | values


def _default_observables(run: Run) -> dict[str, Callable[[Tensor], Tensor]]:
    """The energy and its observables of a field that was kept; none of other models."""
    if not run.physical or not isinstance(run.target, EnergyTarget):
        return {}
    potential, shape = run.target.lattice_potential, run.target.shape
    if potential is not None:
        fitting = potential.observables()
    else:  # of an energy nothing is known of components
        fitting = field_observables(shape) if len(shape) <= MAX_DIM else {}
    functions = {"energy": run.target._energy, **fitting}
    return {name: f for name, f in functions.items() if name not in run.streamed}


def _unconstrained_dims(run: Run, dims: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Names of their own for named sites of another shape where they are unconstrained."""
    return {
        f"unconstrained_posterior/{name}": [
            f"{name}_unconstrained_dim_{axis}" for axis in range(value.dim() - 2)
        ]
        for name, value in run.unconstrained.items()
        if name in dims and value.shape != run.physical[name].shape
    }


def _field_dims(run: Run) -> dict[str, list[str]]:
    """Names by the lattices of fields and of their latents; distinct ones for distinct shapes."""
    if run.target is None:
        return {}
    lattices, values = run.target.lattices, run.physical | run.latent
    components = getattr(run.target.lattice_potential, "components", 0)
    same = len(set(lattices.values())) <= 1
    of = {latent: name for latent, (name, _) in run.target.flow_sites.items()}
    dims = {}
    for variable, name in ({name: name for name in lattices} | of).items():
        shape = lattices.get(name, ())  # empty of what a guide draws beside its fields
        axes = LATTICE_DIMS.get(len(shape) - bool(components), ())
        axes += ("component",) if components and axes else ()
        if variable in values and axes and values[variable].shape[-len(axes) :] == shape:
            plates = range(values[variable].dim() - 2 - len(axes))
            dims[variable] = [f"{name}_plate_{index}" for index in plates]
            dims[variable] += [axis if same else f"{name}_{axis}" for axis in axes]
    return dims


def _importance_group(log_weights: Any) -> tuple[dict[str, NDArray[Any]], dict[str, float]]:
    """Variables and attributes of the group ``importance``."""
    weights = log_weights if isinstance(log_weights, LogWeights) else LogWeights(log_weights)
    number, (log_mean, error) = len(weights), weights.log_mean_with_tail
    if log_mean == -math.inf:
        raise ValueError(f"log_weights are {number} weights of zero; accepted: at least one above")
    ess = {"ess": weights.ess * number, "ess_fraction": weights.ess}
    values = weights.values.numpy()
    normalised = values - log_mean - math.log(number)
    variables = {"log_weight": values, "log_weight_normalised": normalised}
    error = math.nan if weights.copies else error  # which is that of independent samples
    log_partition = {"log_partition": log_mean, "log_partition_se": error}
    return variables, {"pareto_k": weights.pareto_k, **ess, **log_partition}
