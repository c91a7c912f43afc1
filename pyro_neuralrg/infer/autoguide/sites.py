# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The fields among a model's latent sites, and the order of all latents in the guide's flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_neuralrg.infer.pyro_internals import entries_of_sites

MAX_SIDES = 3


class LatentOrder(NamedTuple):
    """The latents of a model as the flow has them: globals first, then the fields.

    Attributes:
        order: the place of each in the model's order; the fields are the fastest index.
        globals_dim: number of globals.
        fields: names, in the model's order.
        lattice: of each field.
        shape: of the flow of them all: several fields are a last axis, or part of the third.
    """

    order: Tensor
    globals_dim: int
    fields: tuple[str, ...]
    lattice: tuple[int, ...]
    shape: tuple[int, ...]


def site_shapes(trace: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each latent site's value, batch and event, in the model's order."""
    return {name: tuple(site["value"].shape) for name, site in trace.iter_stochastic_nodes()}


def format_sites(trace: Any) -> str:
    """The latent sites and their shapes, for messages."""
    seen = ", ".join(f"{name!r} {shape}" for name, shape in site_shapes(trace).items())
    return f"latent sites seen: {seen or 'none'}"


def order_latents(
    trace: Any, names: Sequence[str] | None, shapes: Mapping[str, Sequence[int]]
) -> LatentOrder:
    """Find the fields among the latent sites of a trace, and put them behind the globals.

    A field's lattice is all of its shape, plates and event alike, without leading plates of size
    one. Without names: every site of two or three sides longer than one, or without any, every site
    of one such side; sites whose support ties numbers together, as a simplex does, are no fields.
    ``shapes`` are those of the latent sites, unconstrained, in the model's order.

    A ValueError says if a named site is not a field, or fields do not fit together or a flow.
    """
    fields, lattice = _find_fields(trace, names)
    entries = entries_of_sites(shapes)
    of_globals = [place for name, place in entries.items() if name not in fields]
    order = torch.cat([*of_globals, torch.arange(0)])
    globals_dim = len(order)
    if not fields:
        return LatentOrder(order, globals_dim, (), (), ())
    of_fields = torch.stack([entries[name] for name in fields], 1)
    shape = (*lattice, len(fields))
    if len(fields) == 1 or len(lattice) == MAX_SIDES:  # no axis, or no room for one
        shape = (*lattice[:-1], lattice[-1] * len(fields))
    return LatentOrder(torch.cat([order, of_fields.flatten()]), globals_dim, fields, lattice, shape)


def _find_fields(
    trace: Any, names: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Their names and the lattice that they share."""
    known = {name: _field_shape(site) for name, site in trace.iter_stochastic_nodes()}
    if names is None:
        sides = {name: sum(side > 1 for side in shape) for name, shape in known.items()}
        names = [name for name in known if 2 <= sides[name] <= MAX_SIDES]
        names = names or [name for name in known if sides[name] == 1]
        hint = "name those that are meant with fields=[...]; the others become globals"
    else:
        hint = "fields on one lattice; the sites that are not named become globals"
        for name in names:
            if not known.get(name):
                raise ValueError(
                    f"field is {name!r}, which has no sites on a lattice, or is no latent site of "
                    "the model (it may be observed); accepted: a site to be inferred, of one to "
                    "three dimensions (plates or .to_event), whose support is one of numbers, not "
                    f"of vectors or matrices; {format_sites(trace)}"
                )
    chosen = {name: shape for name, shape in known.items() if name in names}
    if len(set(chosen.values())) > 1:
        raise ValueError(
            f"the model has fields of different shapes: {chosen}; accepted: {hint}; "
            f"{format_sites(trace)}"
        )
    lattice = next(iter(chosen.values()), ())
    if len(lattice) > MAX_SIDES:
        raise ValueError(
            f"fields {list(chosen)} have shape {lattice}; accepted: one to {MAX_SIDES} sides; "
            f"{format_sites(trace)}"
        )
    return tuple(chosen), lattice


def _field_shape(site: Any) -> tuple[int, ...]:
    """The shape of a site whose entries could be those of a field, else ()."""
    support = site["fn"].support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if biject_to(support).codomain.event_dim > 0:
        return ()
    shape, batch_dim = tuple(site["value"].shape), len(site["fn"].batch_shape)
    while batch_dim and shape and shape[0] == 1:
        shape, batch_dim = shape[1:], batch_dim - 1
    return shape
