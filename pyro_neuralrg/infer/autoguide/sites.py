# SPDX-License-Identifier: Apache-2.0
"""The fields among a model's latent sites, and the order of all latents in the guide's flow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import ComposeTransform, TransformedDistribution, biject_to, constraints

from pyro_neuralrg.arguments import see
from pyro_neuralrg.infer.model_sites import base_support
from pyro_neuralrg.infer.pyro_internals import entries_of_sites
from pyro_neuralrg.runtime.console import warn_user

MAX_SIDES = 3


class LatentOrder(NamedTuple):
    """The latents of a model as the flow has them: globals first, then the fields.

    ``order`` is the place of each in the model's order, with fields as the fastest index;
    ``lattice`` is that of a field, ``shape`` of the flow of them all: ``channels``, the fields with
    their components, are a last axis, or part of the third.
    """

    order: Tensor
    globals_dim: int
    fields: tuple[str, ...]
    lattice: tuple[int, ...]
    shape: tuple[int, ...]
    channels: int


def site_shapes(trace: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each latent site's value, in the model's order."""
    return {name: tuple(site["value"].shape) for name, site in trace.iter_stochastic_nodes()}


def format_sites(trace: Any) -> str:
    """The latent sites and their shapes, for messages."""
    seen = ", ".join(f"{name!r} {shape}" for name, shape in site_shapes(trace).items())
    return f"latent sites seen: {seen or 'none'}"


def check_support(name: str, density: Any) -> None:
    """Refuse a transformed distribution whose support holds values that it never draws."""
    while hasattr(density, "base_dist") and not isinstance(density, TransformedDistribution):
        density = density.base_dist  # within .expand, .mask and .to_event
    own = getattr(type(density), "support", None)
    if not isinstance(density, TransformedDistribution) or own is not _OF_LAST_TRANSFORM:
        return
    check_support(name, density.base_dist)
    before, source = type(density.base_dist).__name__, density.base_dist.support
    for transform in _elementary(density.transforms):
        if not _covers(base_support(source), base_support(transform.domain)):
            raise ValueError(
                f"latent site {name!r} is a TransformedDistribution of declared support "
                f"{density.support}, which is wider than the values that it draws: {before} has "
                f"support {source}, a part of the domain of {type(transform).__name__}; accepted: "
                "supports that are exact, as behind "
                f"poutine.reparam(model, {{{name!r}: TransformReparam()}}) of pyro.infer.reparam"
            )
        before, source = type(transform).__name__, transform.codomain


_OF_LAST_TRANSFORM = TransformedDistribution.support
"""The support of a transformed distribution that declares none of its own."""


def _elementary(transforms: Sequence[Any]) -> Iterator[Any]:
    """The transforms, also those within a composition."""
    for transform in transforms:
        is_many = isinstance(transform, ComposeTransform)
        yield from _elementary(transform.parts) if is_many else (transform,)


def _covers(source: Any, domain: Any) -> bool:
    """Report whether all of a transform's domain is possible, by points where that is not known."""
    is_real = [isinstance(support, type(constraints.real)) for support in (source, domain)]
    if any(is_real) or domain.event_dim or source.event_dim:
        return is_real[0] or not is_real[1]
    values = biject_to(domain)(torch.linspace(-3.0, 3.0, 13))
    return all(bool(source.check(value).all()) for value in values)


def order_latents(
    trace: Any,
    names: Sequence[str] | None,
    shapes: Mapping[str, Sequence[int]],
    lattice: tuple[int, ...] | None = None,
    components: int = 1,
) -> LatentOrder:
    """Find the fields among the latent sites of a trace, and put them behind the globals.

    A field's lattice is all of its shape, plates and event alike, without leading plates of size
    one, or the ``lattice`` given, on which its entries lie row by row; of a field of several
    components the last side holds these and is none of the lattice. Without names: every site of as
    many entries as that lattice has numbers, else of two or three sides longer than one, or where
    there is none, the longest ones of one such side; none whose support ties numbers together, as a
    simplex does. ``shapes`` are unconstrained, in the model's order.

    A ValueError says if a named site is not a field, or fields do not fit together or a flow.
    """
    fields, lattice = _find_fields(trace, names, lattice, components)
    entries = entries_of_sites(shapes)
    of_globals = [place for name, place in entries.items() if name not in fields]
    order = torch.cat([*of_globals, torch.arange(0)])
    globals_dim = len(order)
    if not fields:
        return LatentOrder(order, globals_dim, (), (), (), 0)
    of_fields = torch.cat([entries[name].view(-1, components) for name in fields], 1)
    channels = components * len(fields)
    shape = (*lattice, channels)
    if channels == 1 or len(lattice) == MAX_SIDES:  # no axis, or no room for one
        shape = (*lattice[:-1], lattice[-1] * channels)
    order = torch.cat([order, of_fields.flatten()])
    return LatentOrder(order, globals_dim, fields, lattice, shape, channels)


def _find_fields(
    trace: Any, names: Sequence[str] | None, given: tuple[int, ...] | None, components: int
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Their names and the lattice that they share."""
    known = {name: _field_shape(site) for name, site in trace.iter_stochastic_nodes()}
    number = math.prod(given or ()) * components
    if components > 1 and given is None:
        looked_at = known if names is None else names
        fitting = [name for name in looked_at if known.get(name, ())[1:][-1:] == (components,)]
        if not fitting or len(fitting) < len(names or ()):
            raise ValueError(
                f"components is {components}; accepted: the last side of each field, behind one to "
                f"three of its lattice; {list(names or ()) or 'no field'} named; "
                f"{format_sites(trace)}"
            )
        known |= {name: known[name][:-1] for name in fitting}
        names = fitting
    fitting = [name for name, shape in known.items() if shape and math.prod(shape) == number]
    if names is None:
        names = _likely_fields(known) if given is None else fitting
    for name in names:
        if not known.get(name):
            raise ValueError(
                f"field is {name!r}, which has no sites on a lattice, or is no latent site of "
                "the model (it may be observed); accepted: a site to be inferred, of one to "
                "three dimensions (plates or .to_event), whose support is one of numbers, not "
                f"of vectors or matrices; {format_sites(trace)}{see('error-field-not-found')}"
            )
    if given is not None:
        if not names or not set(names) <= set(fitting):
            raise ValueError(
                f"lattice is {given}, of {math.prod(given)} sites; accepted: sides whose product, "
                "times components, is the number of entries of each field, which lie on them row "
                "by row; "
                f"{list(names) or 'no field'} named; {format_sites(trace)}"
            )
        known.update(dict.fromkeys(names, given))
    chosen = {name: shape for name, shape in known.items() if name in names}
    if len(set(chosen.values())) > 1:
        largest = max(chosen.values(), key=math.prod)
        alike = [name for name, shape in chosen.items() if shape == largest]
        raise ValueError(
            f"the model has fields of different shapes: {chosen}; accepted: those on one lattice, "
            f"such as fields={alike}; the sites that are not named become globals; "
            f"{format_sites(trace)}"
        )
    lattice = next(iter(chosen.values()), ())
    if len(lattice) > MAX_SIDES:
        raise ValueError(
            f"fields {list(chosen)} have shape {lattice}; accepted: one to {MAX_SIDES} sides, "
            f"or lattice=(...), which gives their entries fewer; {format_sites(trace)}"
        )
    return tuple(chosen), lattice


def _likely_fields(known: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Sites of two or three sides, or else the longest of one; a warning says what is a guess."""
    sides = {name: sum(side > 1 for side in shape) for name, shape in known.items()}
    names = [name for name in known if 2 <= sides[name] <= MAX_SIDES]
    lines = {name: shape for name, shape in known.items() if sides[name] == 1}
    if not names and lines:
        longest = max(lines.values(), key=math.prod)
        names = [name for name, shape in lines.items() if shape == longest]
        if len(set(lines.values())) > 1:
            warn_user(
                f"the model's one-dimensional sites differ in shape, {lines}: {names}, the "
                "longest, is taken as a field, and the others as globals; field='NAME' or "
                "fields=[...] says what is meant (fields=[]: globals only)"
            )
    beyond = {name: shape for name, shape in known.items() if sides[name] > MAX_SIDES}
    if beyond:
        warn_user(
            f"sites {beyond} have more than {MAX_SIDES} sides and are taken as globals; as fields "
            f"they need a lattice: field='NAME', lattice=(...) with at most {MAX_SIDES} sides "
            "(fields=[...] of the fields, or [], says that they are globals)"
        )
    return names


def _field_shape(site: Any) -> tuple[int, ...]:
    """The shape of a site whose entries could be those of a field, else ()."""
    if biject_to(base_support(site["fn"])).codomain.event_dim > 0:
        return ()
    shape, batch_dim = tuple(site["value"].shape), len(site["fn"].batch_shape)
    while batch_dim and shape and shape[0] == 1:
        shape, batch_dim = shape[1:], batch_dim - 1
    return shape
