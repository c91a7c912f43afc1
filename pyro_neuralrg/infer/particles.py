# SPDX-License-Identifier: Apache-2.0
"""All particles of an evaluation at once: whether programs take them, and what to do if not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_neuralrg.arguments import copied
from pyro_neuralrg.files.format import one_line
from pyro_neuralrg.infer.log_joint import SharedSolves, sum_of
from pyro_neuralrg.infer.model_sites import RUNS, FillMasked, aside, check_data
from pyro_neuralrg.infer.pyro_internals import numbers_may_fail
from pyro_neuralrg.runtime.console import warn_user

REMEDY = (
    "it takes them if batch dimensions may stand before its own: x[..., 0] instead of x[0], "
    "sum(-1) instead of sum(), no keepdim beside a plate"
)

Shapes = Mapping[str, torch.Size]


class Way(NamedTuple):
    """How the particles are run: all at once, unless it says otherwise.

    Attributes:
        one_by_one: guide and model, one particle after another.
        shapes: of the draws of a single particle, if the model runs for each row of draws alone.
        by_vmap: the rows by ``torch.func.vmap``, else one after another.
    """

    one_by_one: bool = False
    shapes: Shapes | None = None
    by_vmap: bool = False

    def log_pi(self, model: Any, guide_trace: Any, number: int, args: Any, kwargs: Any) -> Tensor:
        """The model's log densities of the draws of a vectorised guide, ``(number,)``."""
        rows = _rows_of(draws_of(guide_trace), self.shapes or {}, number)
        return _log_pi(model, rows, args, kwargs, self.by_vmap)


def program_key(program: Any) -> Any:
    """What stays the same where handlers and lambdas are made anew in each step."""
    program = poutine.unwrap(program)
    while hasattr(program, "func"):
        program = program.func
    owner, program = getattr(program, "__self__", None), getattr(program, "__func__", program)
    return type(owner), getattr(program, "__code__", type(program))


def find_way(
    in_plate: Callable[[Any], Any], number: int, model: Any, guide: Any, args: Any, kwargs: Any
) -> Way:
    """Compare densities with plates to those of two particles alone, site by site, on fresh draws.

    Flows and autoguides take batches by themselves, and energies of lattices, of which two fields
    are tried. No random numbers are used up. ``in_plate`` puts programs in the plate of particles.

    Raises:
        ValueError: if data are NaN where no mask hides them, or a lattice's energy of one field
            depends on the others.

    Warns:
        UserWarning: if they differ, or there are none with plates; then the particles run apart.
    """
    is_known = isinstance(guide, AutoGuide) or getattr(guide, "takes_batches", False)
    if isinstance(poutine.unwrap(guide), Messenger):
        return Way()
    potential: Any = getattr(model, "__self__", None)
    if is_known and hasattr(potential, "energy"):
        if hasattr(potential, "try_alone"):
            with aside(), numbers_may_fail():
                drawn = draws_of(replayed(guide, {}, args, kwargs))
                potential.try_alone(next(iter(drawn.values())))
        return Way()
    model = FillMasked()(model)
    draws: dict[str, Tensor] = {}
    with aside():
        alone = draws_of(replayed(guide, {}, args, kwargs))
        trace = replayed(model, alone, args, kwargs)
        check_data([trace])
        alone = draws_of(trace) | alone
        shapes = {name: value.shape for name, value in alone.items()}
        for program in (guide, model):
            try:
                together = replayed(in_plate(program), draws, args, kwargs)
                draws |= draws_of(together)
                if program is guide and _have_rows(args, kwargs, number, draws, shapes):
                    return Way()
                rows = _rows_of(draws, shapes, number)
                is_checked = program is model or not is_known
                fault = _fault(together, rows, program, args, kwargs) if is_checked else None
            except Exception as error:  # whatever a program may raise with other shapes
                fault = one_line(error)
            if fault is not None:
                break
        else:
            return Way()
        name = "guide" if program is guide else "model"
        apart = "for one particle after another, which is slow"
        way, how = Way(one_by_one=True), f"both programs run {apart}"
        if program is model and draws:
            way = Way(shapes=shapes, by_vmap=_takes_vmap(model, rows, args, kwargs))
            how = f"it runs {'by torch.func.vmap' if way.by_vmap else apart}"
    warn_user(f"the {name} does not take all particles at once: {fault}; {how} ({REMEDY})")
    return way


def replayed(program: Any, values: Mapping[str, Tensor], args: Any, kwargs: Any) -> Any:
    """The trace of a run with these draws."""
    given = poutine.Trace()
    for name, value in values.items():
        given.add_node(name, name=name, type="sample", is_observed=False, value=value, infer={})
    traced = poutine.trace(poutine.replay(program, trace=given))
    return traced.get_trace(*copied(args), **copied(kwargs))


def draws_of(trace: Any) -> dict[str, Tensor]:
    """Draws by site, those of subsamples included."""
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    return {site["name"]: site["value"] for site in sites if not site["is_observed"]}


def _rows_of(draws: Mapping[str, Tensor], shapes: Shapes, number: int) -> dict[str, Tensor]:
    """A row for each particle, of the shape that the site has alone."""
    rows = {}
    for name, value in draws.items():
        alone = shapes.get(name, value.shape)
        if value.numel() == number * alone.numel():
            rows[name] = value.reshape(number, *alone)
        elif value.shape == alone:  # a subsample, the same for all
            rows[name] = value.expand(number, *alone)
        else:
            raise ValueError(
                f"site {name!r} has shape {tuple(alone)} alone and {tuple(value.shape)} with "
                f"{number} particles"
            )
    return rows


def _have_rows(
    args: Any, kwargs: Any, number: int, draws: Mapping[str, Tensor], shapes: Shapes
) -> bool:
    """Report whether arguments hold a row for each particle: then none can be run alone."""
    given = [value.shape[:1] for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    return (number,) in given and all(value.shape == shapes[x] for x, value in draws.items())


def _fault(
    together: Any, rows: Mapping[str, Tensor], program: Any, args: Any, kwargs: Any
) -> str | None:
    """The first site whose density is another for one particle alone, in words."""
    number, densities = len(next(iter(rows.values()), ())), _densities(together)
    for index in sorted({0, number - 1} if number else ()):
        one, before = {name: row[index] for name, row in rows.items()}, _random_state()
        alone, others = _densities(replayed(program, one, args, kwargs)), []
        if not torch.equal(_random_state(), before):
            others = [_densities(replayed(program, one, args, kwargs)) for _ in range(RUNS)]
        for name, density in alone.items():
            found, expected = densities[name], density.sum()
            if any(not torch.allclose(expected, x[name].sum(), equal_nan=True) for x in others):
                continue  # random within, as by dropout
            if found.numel() > density.numel():
                found = found.reshape(number, -1)[index]
            tolerance = torch.finfo(density.dtype).eps ** 0.3 * (1 + float(density.abs().nansum()))
            if not torch.isclose(found.sum(), expected, 0, tolerance, equal_nan=True):
                return (
                    f"at site {name!r} one draw has a log density of {float(expected):.6g} alone "
                    f"and of {float(found.sum()):.6g} among {number} particles"
                )
    return None


def _random_state() -> Tensor:
    return torch.cat([torch.get_rng_state(), *torch.cuda.get_rng_state_all()])


def _densities(trace: Any) -> dict[str, Tensor]:
    """Log densities by site, without flows, which take batches, and may have no inverse."""
    trace = prune_subsample_sites(trace)
    trace.compute_log_prob(lambda name, site: not _is_flow(site["fn"]))
    nodes = trace.nodes.items()
    return {name: site["log_prob"].detach() for name, site in nodes if "log_prob" in site}


def _is_flow(q: Any) -> bool:
    modules = (isinstance(step, torch.nn.Module) for step in getattr(q, "transforms", ()))
    return hasattr(q, "rsample_and_log_prob") or any(modules)


def _log_pi(
    model: Any, rows: Mapping[str, Tensor], args: Any, kwargs: Any, by_vmap: bool
) -> Tensor:
    """The model's log density of each row of draws."""

    def of_one(row: Mapping[str, Tensor]) -> Tensor:
        trace = prune_subsample_sites(replayed(model, row, args, kwargs))
        with SharedSolves():
            trace.compute_log_prob()
        sites = (site for site in trace.nodes.values() if site["type"] == "sample")
        return sum((sum_of(site["log_prob"].reshape(-1)) for site in sites), torch.zeros(()))

    if by_vmap:
        with pyro.validation_enabled(False):
            return torch.func.vmap(of_one, randomness="different")(dict(rows))
    number = len(next(iter(rows.values())))
    each = ({name: row[index] for name, row in rows.items()} for index in range(number))
    return torch.stack([of_one(row) for row in each])


def _takes_vmap(model: Any, rows: Mapping[str, Tensor], args: Any, kwargs: Any) -> bool:
    expected = _log_pi(model, rows, args, kwargs, by_vmap=False)
    try:
        found = _log_pi(model, rows, args, kwargs, by_vmap=True)
    except Exception:  # whatever vmap, or the model inside vmap, raises
        return False
    return found.shape == expected.shape and torch.allclose(found, expected, 1e-2, 1e-2)
