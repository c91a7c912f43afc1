# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Which latent sites of a model are fields on a lattice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

__all__ = ["Fields", "Layout", "describe", "find_fields", "flow_shape", "layout_of", "shapes_of"]

MOST_SIDES = 3


class Fields(NamedTuple):
    """The fields of a model.

    Attributes:
        names: in the model's order; none for a model without a lattice.
        lattice: the shape that they share.
    """

    names: tuple[str, ...]
    lattice: tuple[int, ...]


class Layout(NamedTuple):
    """The latents of a model as the flow has them: globals first, then the fields.

    Attributes:
        order: the place of each in the model's order; the fields are the fastest index.
        globals_dim: number of globals.
        channels: number of fields.
        lattice: of each field; () without any.
        shape: lattice of the flow of them all, likewise.
    """

    order: Tensor
    globals_dim: int
    channels: int
    lattice: tuple[int, ...]
    shape: tuple[int, ...]


def shapes_of(trace: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each latent site's value, batch and event, in the model's order."""
    return {name: tuple(site["value"].shape) for name, site in trace.iter_stochastic_nodes()}


def describe(trace: Any) -> str:
    """The latent sites and their shapes, for messages."""
    seen = ", ".join(f"{name!r} {shape}" for name, shape in shapes_of(trace).items())
    return f"latent sites seen: {seen or 'none'}"


def flow_shape(lattice: tuple[int, ...], channels: int) -> tuple[int, ...]:
    """The lattice of the flow of several fields: they are a last axis, the last index of each site.

    On three sides there is no room for a fourth: there the last side is that many times as long.

    Example:
        >>> flow_shape((8, 8), 3), flow_shape((4, 4, 4), 3), flow_shape((4, 4, 4), 1)
        ((8, 8, 3), (4, 4, 12), (4, 4, 4))
    """
    if channels == 1:
        return lattice
    if len(lattice) < MOST_SIDES:
        return (*lattice, channels)
    return (*lattice[:-1], lattice[-1] * channels)


def layout_of(fields: Fields, shapes: Mapping[str, torch.Size]) -> Layout:
    """Where globals and fields stand in a vector of all latents.

    Args:
        fields: of the model.
        shapes: of each latent site, unconstrained, in the model's order.
    """
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    places = dict(zip(shapes, torch.arange(sum(sizes)).split(sizes), strict=True))
    others = [place for name, place in places.items() if name not in fields.names]
    order = torch.cat([*others, torch.arange(0)])
    globals_dim = len(order)
    shape: tuple[int, ...] = ()
    if fields.names:
        stacked = torch.stack([places[name] for name in fields.names], 1)
        order = torch.cat([order, stacked.flatten()])
        shape = flow_shape(fields.lattice, len(fields.names))
    return Layout(order, globals_dim, len(fields.names), fields.lattice, shape)


def find_fields(trace: Any, names: Sequence[str] | None) -> Fields:
    """The fields among the latent sites of a trace.

    A field's lattice is all of its shape, plates and event alike, without leading plates of size
    one. Without names: every site of two or three sides longer than one, or where there is none,
    every site of one such side; supports that tie sites together, such as a simplex, are none.

    Args:
        trace: of a model, with its latent sites only.
        names: of the fields, or None to look for them.

    Raises:
        ValueError: naming the sites seen, if a named one is not there or no field, or if fields
            have different shapes or more sides than a flow takes.
    """
    known = {name: _lattice(site) for name, site in trace.iter_stochastic_nodes()}
    if names is None:
        chosen = _candidates(known)
        hint = "name those that are meant with fields=[...]; the others become globals"
    else:
        _check_names(trace, known, names)
        chosen = {name: shape for name, shape in known.items() if name in names and shape}
        hint = "fields on one lattice; the sites that are not named become globals"
    if not chosen:
        return Fields((), ())
    lattices = set(chosen.values())
    if len(lattices) > 1:
        raise ValueError(
            f"the model has fields of different shapes: {chosen}; accepted: {hint}; "
            f"{describe(trace)}"
        )
    lattice = lattices.pop() or ()
    if len(lattice) > MOST_SIDES:
        raise ValueError(
            f"fields {list(chosen)} have shape {lattice}; accepted: one to {MOST_SIDES} sides; "
            f"{describe(trace)}"
        )
    return Fields(tuple(chosen), lattice)


def _candidates(
    known: Mapping[str, tuple[int, ...] | None],
) -> dict[str, tuple[int, ...]]:
    """The sites of two or three sides, else those of one side; sides of one do not count."""
    sides = {name: sum(side > 1 for side in shape or ()) for name, shape in known.items()}
    for accepted in (range(2, MOST_SIDES + 1), range(1, 2)):
        found = {name: shape for name, shape in known.items() if sides[name] in accepted and shape}
        if found:
            return found
    return {}


def _check_names(
    trace: Any, known: Mapping[str, tuple[int, ...] | None], names: Sequence[str]
) -> None:
    for name in names:
        if name not in known:
            raise ValueError(
                f"field is {name!r}, which is no latent site of the model (or is observed); "
                f"accepted: a site to be inferred; {describe(trace)}"
            )
        if not known[name]:
            raise ValueError(
                f"field is {name!r}, which has no sites on a lattice; accepted: a site of one to "
                f"three dimensions (plates or .to_event) whose support is one of numbers, not of "
                f"vectors or matrices; {describe(trace)}"
            )


def _lattice(site: Any) -> tuple[int, ...] | None:
    """The shape of a site whose entries could be those of a field, else None."""
    support = site["fn"].support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if biject_to(support).codomain.event_dim > 0:
        return None
    shape, batch_dim = tuple(site["value"].shape), len(site["fn"].batch_shape)
    while batch_dim and shape and shape[0] == 1:
        shape, batch_dim = shape[1:], batch_dim - 1
    return shape
