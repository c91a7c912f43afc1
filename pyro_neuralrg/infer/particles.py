# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""All particles of an evaluation at once: whether a model takes them, and what to do if not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_neuralrg.files.format import one_line
from pyro_neuralrg.infer.model_sites import FillMasked
from pyro_neuralrg.runtime.console import warn_user

REMEDY = (
    "it takes them if batch dimensions may stand before its own: x[..., 0] instead of x[0], "
    "sum(-1) instead of sum(), no keepdim beside a plate"
)


@dataclass(frozen=True)
class Way:
    """How the particles are run: with plates, or apart.

    Attributes:
        guide_apart: guide and model, one particle after another.
        log_pi: of rows of draws by site, ``(num_particles,)``; None: the model takes all at once.
        shapes: of the draws of a single particle.
    """

    guide_apart: bool = False
    log_pi: Callable[..., Tensor] | None = None
    shapes: Mapping[str, torch.Size] = field(default_factory=dict)


def program_key(program: Any) -> Any:
    """What stays the same where handlers and lambdas are made anew in each step."""
    program = poutine.unwrap(program)
    while hasattr(program, "func"):
        program = program.func
    program = getattr(program, "__func__", program)
    return getattr(program, "__code__", type(program))


def find_way(
    in_plate: Callable[[Any], Any], number: int, model: Any, guide: Any, args: Any, kwargs: Any
) -> Way:
    """Compare densities with plates to those of two particles alone, site by site, on fresh draws.

    Energies of lattices, flows and autoguides take batches by themselves. No random numbers are
    used up. ``in_plate`` puts programs in the plate of particles.

    Warns:
        UserWarning: if they differ, or there are none with plates; then the particles run apart.
    """
    is_known = isinstance(guide, AutoGuide) or getattr(guide, "takes_batches", False)
    if is_known and hasattr(getattr(model, "__self__", None), "energy"):
        return Way()
    if isinstance(poutine.unwrap(guide), Messenger):
        return Way()
    model, devices = FillMasked()(model), range(torch.cuda.device_count())
    with torch.random.fork_rng(devices), poutine.block(), pyro.validation_enabled(False):
        q_alone = poutine.trace(guide).get_trace(*args, **kwargs)
        pi_alone = _replay(model, values_of(q_alone), args, kwargs)
        shapes = {n: v.shape for n, v in (values_of(pi_alone) | values_of(q_alone)).items()}
        try:
            q = poutine.trace(in_plate(guide)).get_trace(*args, **kwargs)
            if _rows_are_particles(values_of(q), shapes, number, args, kwargs):
                return Way()
            rows = rows_of(values_of(q), shapes, number)
            fault = None if is_known else _fault(q, rows, guide, args, kwargs)
        except Exception as error:  # whatever a program may raise with other shapes
            fault = one_line(error)
        if fault is not None:
            _warn("guide", fault, "both programs run for one particle after another, which is slow")
            return Way(guide_apart=True)
        try:
            pi = _replay(in_plate(model), values_of(q), args, kwargs)
            fault = _fault(pi, rows_of(values_of(pi), shapes, number), model, args, kwargs)
        except Exception as error:
            fault = one_line(error)
        if fault is None:
            return Way()
        if not rows:
            return Way(guide_apart=True)
        log_pi, how = _apart(model, rows, args, kwargs)
        _warn("model", fault, how)
        return Way(log_pi=log_pi, shapes=shapes)


def values_of(trace: Any) -> dict[str, Tensor]:
    """Draws by site, those of subsamples included."""
    return {
        name: site["value"]
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"]
    }


def rows_of(
    values: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], number: int
) -> dict[str, Tensor]:
    """A row for each particle, of the shape that the site has alone."""
    rows = {}
    for name, value in values.items():
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


def _rows_are_particles(
    values: Mapping[str, Tensor], shapes: Any, number: int, args: Any, kwargs: Any
) -> bool:
    """True if arguments hold a row for each particle, so that there is no run of one alone."""
    return any(
        isinstance(given, Tensor) and given.shape[:1] == (number,)
        for given in (*args, *kwargs.values())
    ) and all(value.shape == shapes[name] for name, value in values.items())


def _replay(program: Any, values: Mapping[str, Tensor], args: Any, kwargs: Any) -> Any:
    given = poutine.Trace()
    for name, value in values.items():
        given.add_node(name, name=name, type="sample", is_observed=False, value=value, infer={})
    return poutine.trace(poutine.replay(program, trace=given)).get_trace(*args, **kwargs)


def _fault(
    together: Any, rows: Mapping[str, Tensor], program: Any, args: Any, kwargs: Any
) -> str | None:
    """The first site whose density is another for one particle alone, in words."""
    number = len(next(iter(rows.values()), ()))
    if not number:
        return None
    densities = _densities(together)
    for index in (0, number - 1):
        one = {name: row[index] for name, row in rows.items()}
        alone, again = (_densities(_replay(program, one, args, kwargs)) for _ in range(2))
        for name, density in alone.items():
            found, expected = densities[name], density.sum()
            if not torch.allclose(expected, again[name].sum(), equal_nan=True):
                return None  # random within, as by dropout
            if found.numel() > density.numel():
                found = found.reshape(number, -1)[index]
            tolerance = torch.finfo(density.dtype).eps ** 0.3 * (1 + float(density.abs().nansum()))
            if not torch.isclose(found.sum(), expected, 0, tolerance, equal_nan=True):
                return (
                    f"at site {name!r} one draw has a log density of {float(expected):.6g} alone "
                    f"and of {float(found.sum()):.6g} among {number} particles"
                )
    return None


def _densities(trace: Any) -> dict[str, Tensor]:
    """Log densities by site, without flows, which take batches, and may have no inverse."""
    trace = prune_subsample_sites(trace)
    trace.compute_log_prob(lambda name, site: not _is_flow(site["fn"]))
    nodes = trace.nodes.items()
    return {name: site["log_prob"].detach() for name, site in nodes if "log_prob" in site}


def _is_flow(q: Any) -> bool:
    modules = (isinstance(step, torch.nn.Module) for step in getattr(q, "transforms", ()))
    return hasattr(q, "rsample_and_log_prob") or any(modules)


def _apart(
    model: Any, rows: Mapping[str, Tensor], args: Any, kwargs: Any
) -> tuple[Callable[..., Tensor], str]:
    """The log density of each row by vmap where it is right, else in a loop; how, in words."""
    expected = _row_by_row(model, rows, args, kwargs)
    try:
        found = _by_vmap(model, rows, args, kwargs)
        if found.shape == expected.shape and torch.allclose(found, expected, 1e-2, 1e-2):
            return _by_vmap, "it runs by torch.func.vmap"
    except Exception:  # whatever vmap, or the model inside vmap, raises
        pass
    return _row_by_row, "it runs for one particle after another, which is slow"


def _log_pi(model: Any, args: Any, kwargs: Any, row: Mapping[str, Tensor]) -> Tensor:
    trace: Any = prune_subsample_sites(_replay(model, row, args, kwargs))
    return trace.log_prob_sum()


def _by_vmap(model: Any, rows: Mapping[str, Tensor], args: Any, kwargs: Any) -> Tensor:
    with pyro.validation_enabled(False):
        of_one = partial(_log_pi, model, args, kwargs)
        return torch.func.vmap(of_one, randomness="different")(dict(rows))


def _row_by_row(model: Any, rows: Mapping[str, Tensor], args: Any, kwargs: Any) -> Tensor:
    number = len(next(iter(rows.values())))
    each = ({name: row[index] for name, row in rows.items()} for index in range(number))
    return torch.stack([_log_pi(model, args, kwargs, row) for row in each])


def _warn(program: str, fault: str, how: str) -> None:
    warn_user(f"the {program} does not take all particles at once: {fault}; {how} ({REMEDY})")
