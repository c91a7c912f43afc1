# SPDX-License-Identifier: Apache-2.0
"""Data of a Pyro model, their densities at the draws of a run, and what the model predicts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyro_neuralrg.arguments import copied
from pyro_neuralrg.diagnostics.tree import coordinate, dim_names, free_name
from pyro_neuralrg.infer.model_sites import ImproperDraws, aside, filled, hidden_by_masks, innermost
from pyro_neuralrg.runtime.console import warn_user

BATCH = 1024  # draws that are evaluated at once
DATA_GROUPS = "observed_data", "posterior_predictive", "prior_predictive"

NamedTensors = dict[str, Tensor]


class Data(NamedTuple):
    """An observed site. Its cells, one datum each, are what its distribution takes apart."""

    value: Tensor  # of the shape of its distribution
    cells: int  # dimensions that tell cells apart, before those of a joint density
    seen: Tensor | None  # of the shape of the cells, False where a mask hides one; None: no mask

    def select(self, values: Tensor) -> Tensor:
        """The seen ones of all cells, behind one dimension of draws."""
        return values if self.seen is None else values[:, self.seen]


class ModelGroups:
    """ArviZ's groups that take runs of the model, which are aside and leave random numbers alone.

    The model is as it is written, None of a run without one. Its latent sites are among the draws,
    ``(chains, draws, ...)`` by name.
    """

    def __init__(
        self, model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], draws: NamedTensors
    ) -> None:
        self._model, self._args, self._kwargs = model, args, kwargs
        first = {name: value[0, 0] for name, value in draws.items()}
        with aside(), torch.no_grad():
            program = ImproperDraws()(self._program)
            self._sites = {} if model is None else _sites_at(program, first)
        free = [x for x, site in self._sites.items() if not _is_a(site, dist.Delta, dist.Unit)]
        self._draws = {name: draws[name].flatten(0, 1) for name in free if name in draws}
        self._batch = tuple(next(iter(draws.values())).shape[:2]) if draws else (0, 0)
        new = {name: self._sites[name] for name in free if name not in draws}
        self.data = {name: _data(site) for name, site in new.items() if site["is_observed"]}
        self.unknown = [name for name in new if name not in self.data]  # such as discrete ones
        seen = {name: data.select(data.value[None])[0] for name, data in self.data.items()}
        self.observed = {name: value for name, value in seen.items() if value.numel()}

    def _program(self) -> Any:
        return self._model(*copied(self._args), **copied(self._kwargs))

    def constants(self) -> NamedTensors:
        """Arrays among the model's arguments that are no data, by the names of the arguments."""
        if self._model is None:
            return {}
        program = self._model.forward if isinstance(self._model, nn.Module) else self._model
        given = inspect.signature(program).bind(*self._args, **self._kwargs).arguments
        arrays = {
            # a copy, since torch takes no array that is reversed and warns of one that is read-only
            name: value.detach() if isinstance(value, Tensor) else torch.tensor(np.array(value))
            for name, value in given.items()
            if isinstance(value, Tensor) or getattr(value, "dtype", np.dtype("O")).kind in "biuf"
        }
        return {name: value for name, value in arrays.items() if not self._is_data(value)}

    def log_likelihood(self) -> NamedTensors:
        """Log-density of each datum that is seen at each draw, nats."""
        self._check_draws("log_likelihood")
        scales = {name: torch.as_tensor(self._sites[name]["scale"]) for name in self.observed}
        if scaled := [name for name, scale in scales.items() if bool((scale != 1).any())]:
            warn_user(
                f"observed sites {scaled} are scaled (poutine.scale); their log_likelihood is that "
                "of each datum once, and leave-one-out (az.loo) takes no more of it away"
            )

        def of_one(values: NamedTensors, _: Tensor) -> NamedTensors:
            sites, found = _sites_at(self._program, values), {}
            for name in self.observed:
                fn, mask = sites[name]["fn"], sites[name]["mask"]
                value = filled(fn, torch.as_tensor(sites[name]["value"]), mask)
                found[name] = innermost(fn).log_prob(value.expand(self.data[name].value.shape))
            return found

        with aside(), torch.no_grad():
            return self._seen(_at_each(of_one, self._draws, self._batch), self._batch)

    def posterior_predictive(self, seed: int) -> tuple[NamedTensors, NamedTensors]:
        """Data drawn anew at each draw: those that are seen, and all cells of sites with hidden."""
        self._check_draws("posterior_predictive")
        drawn = self._drawn(list(self.data), self._draws, self._batch, seed)
        whole = {name for name, data in self.data.items() if data.seen is not None}
        predictions = {name: drawn[name].unflatten(0, self._batch) for name in whole}
        return self._seen(drawn, self._batch), predictions

    def prior(self, number: int, seed: int) -> tuple[NamedTensors, NamedTensors]:
        """One chain of draws of the prior: of all sites but the data, and of data that are seen."""
        if self._model is None:
            raise ValueError(f"prior is {number} for a run of an energy; accepted: of a Pyro model")
        batch = (1, number)
        names = [name for name, site in self._sites.items() if not _is_a(site, dist.Unit)]
        for name in (*self._draws, *self.unknown):
            site = self._sites[name]
            hidden = hidden_by_masks(site["fn"])
            if _is_a(site, dist.ImproperUniform) or (hidden is not None and bool(hidden.all())):
                raise ValueError(
                    f"prior is {number}, and there are no draws of site {name!r}, whose prior is "
                    "improper, or that of a flow within the model; accepted for this model: 0"
                )
        if factors := self._sites.keys() - names:
            warn_user(f"draws of the prior know nothing of the model's factors {sorted(factors)}")
        if flat := [x for x in names if getattr(innermost(self._sites[x]["fn"]), "null_modes", 0)]:
            warn_user(
                f"the prior of sites {flat} says nothing of their mean; its draws sum to zero"
            )
        drawn = self._drawn(names, {}, batch, seed)
        own = {name: drawn[name].unflatten(0, batch) for name in names if name not in self.data}
        return own, self._seen(drawn, batch)

    def dims(
        self, given: Mapping[str, Sequence[str]], coords: Mapping[str, Sequence[Any]]
    ) -> tuple[dict[str, list[str]], dict[str, dict[str, Any]]]:
        """Names of dimensions by variable or group/variable, and where cells are that are seen.

        These are coordinates along the dimension of the seen cells of a site, by their names.
        """
        plates = {}
        for name, site in self._sites.items():
            value = self.data[name].value if name in self.data else torch.as_tensor(site["value"])
            if names := _plate_dims(name, site, value.shape, self._sites):
                plates[name] = names
        named, places = dict(plates), {}
        for name, (value, cells, seen) in self.data.items():
            whole = list(dim_names("observed_data", name, value.shape, {**plates, **given}))
            named[name], named[f"log_likelihood/{name}"] = whole, whole[:cells]
            if seen is not None:
                along = f"{name}_seen"
                named |= {f"{group}/{name}": [along, *whole[cells:]] for group in DATA_GROUPS}
                named[f"log_likelihood/{name}"] = [along]
                rows = seen.nonzero().cpu().numpy().T
                places[along] = {
                    free_name(f"{name}_{dim.removeprefix(f'{name}_')}", self._sites): coordinate(
                        dim, coords.get(dim, range(size)), size
                    )[row]
                    for dim, size, row in zip(whole[:cells], seen.shape, rows, strict=True)
                }
        for name, value in self.constants().items():
            own = {} if name in self._sites else given
            named[f"constant_data/{name}"] = list(
                dim_names("constant_data", name, value.shape, own)
            )
        return named, places

    def _is_data(self, value: Tensor) -> bool:
        known = [data.value for data in self.data.values() if data.value.shape == value.shape]
        return any(torch.allclose(value.double(), data.double(), equal_nan=True) for data in known)

    def _check_draws(self, option: str) -> None:
        if not (self.observed and self._draws) or self.unknown:
            raise ValueError(
                f"{option} is True for a run with observed sites {list(self.observed)}, draws of "
                f"{list(self._draws)} and other latent sites {self.unknown}; accepted: a run of a "
                "Pyro model with observed sites, and draws of all latent ones"
            )

    def _drawn(
        self, names: Iterable[str], values: NamedTensors, batch: tuple[int, ...], seed: int
    ) -> NamedTensors:
        """Values of sites where data are drawn, at each of the latent values or of the prior."""
        program = _Fresh(self.data)(self._program)

        def of_one(one: NamedTensors, _: Tensor) -> NamedTensors:
            sites = _sites_at(program, one)
            return {name: torch.as_tensor(sites[name]["value"]) for name in names}

        with aside(), torch.no_grad():
            torch.manual_seed(seed)
            return _at_each(of_one, values, batch)

    def _seen(self, values: NamedTensors, batch: tuple[int, ...]) -> NamedTensors:
        return {x: self.data[x].select(values[x]).unflatten(0, batch) for x in self.observed}


class _Fresh(UnconditionMessenger):
    """Data drawn anew; what is observed because it is a function of other sites stays one."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self._names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self._names:
            super()._pyro_sample(msg)


def _at_each(
    function: Callable[[NamedTensors, Tensor], NamedTensors],
    values: NamedTensors,
    batch: tuple[int, ...],
) -> NamedTensors:
    """A function of each draw, by ``torch.func.vmap``, or one by one where that cannot take it."""
    index = torch.arange(batch[0] * batch[1])
    try:
        mapped = torch.func.vmap(function, randomness="different", chunk_size=BATCH)
        return mapped(values, index)
    except Exception:  # whatever vmap, or the model inside vmap, raises
        found = [function({name: x[i] for name, x in values.items()}, i) for i in index]
        return {name: torch.stack([one[name] for one in found]) for name in found[0]}


def _sites_at(program: Callable[[], Any], values: NamedTensors) -> dict[str, Any]:
    """Sites of a run at these values, but for subsamples."""
    nodes = poutine.trace(poutine.condition(program, values)).get_trace().nodes
    return {
        name: node
        for name, node in nodes.items()
        if node["type"] == "sample" and not site_is_subsample(node)
    }


def _is_a(site: Any, *kinds: type) -> bool:
    return isinstance(innermost(site["fn"]), kinds)


def _data(site: Any) -> Data:
    fn, value = site["fn"], torch.as_tensor(site["value"]).detach()
    batch = value.shape[: value.dim() - fn.event_dim]
    value = value.expand(torch.broadcast_shapes(fn.batch_shape, batch) + value.shape[len(batch) :])
    cells = value.dim() - innermost(fn).event_dim
    hidden = hidden_by_masks(fn, site["mask"])
    if hidden is None or not bool(hidden.any()):
        return Data(value, cells, None)
    return Data(value, cells, ~hidden.expand(value.shape).unsqueeze(-1).flatten(cells)[..., 0])


def _plate_dims(name: str, site: Any, shape: Sequence[int], taken: Collection[str]) -> list[str]:
    """Names of all dimensions of a site in plates: theirs, and ArviZ's default for others."""
    is_function = _is_a(site, dist.Delta)  # which Pyro sees as one event, plates and all
    batch = len(shape) - (0 if is_function else site["fn"].event_dim)
    plates = {
        batch + frame.dim: frame.name
        for frame in site["cond_indep_stack"]
        if frame.vectorized and batch + frame.dim >= 0 and shape[batch + frame.dim] == frame.size
    }
    # a dimension cannot share a variable's name
    named = {axis: plate for axis, plate in plates.items() if plate not in taken}
    return [named.get(axis, f"{name}_dim_{axis}") for axis in range(len(shape))] if plates else []
