# SPDX-License-Identifier: Apache-2.0
"""Factories of the transforms that act on the blocks of a layer.

A factory is a frozen dataclass with one method, ``build(layout)``. A user's own block (such as
Pyro's ``affine_coupling``) or layer needs no new class: see ``BlockFactory``, ``LayerFactory``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from pyro.distributions.conditional import ConditionalTransformModule
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import Transform

from pyro_neuralrg.arguments import check_choice
from pyro_neuralrg.transforms.base import LatticeTransform, forward_and_ladj, inverse_and_ladj
from pyro_neuralrg.transforms.coupling import neighbour_coupling, realnvp_block


@dataclass(frozen=True)
class BlockLayout:
    """The place where a bijector is to act.

    Attributes:
        block: sites of a block along each axis.
        count: blocks along each axis.
        odd: the bijector must commute with x -> -x.
        boundary: "periodic" or "open".
        per_block: each block has weights of its own.
        context_dim: features of a context that its networks take besides; 0 for none.
        features: what is known of the sites of each block, shape ``(number, *count)``, or None.
        components: of a vector field at each site; 0 for a scalar field.
    """

    block: tuple[int, ...]
    count: tuple[int, ...]
    odd: bool
    boundary: str
    per_block: bool
    context_dim: int = 0
    features: Tensor | None = dataclasses.field(default=None, compare=False)
    components: int = 0

    @property
    def size(self) -> int:
        """Number of variables of a block, components of its sites one after the other."""
        return math.prod(self.block) * max(1, self.components)


class Bijector(Protocol):
    """A factory of layer transforms.

    With an attribute ``sees_sites = True`` it takes site features. With ``fills_up_blocks = True``
    its transform acts on all blocks of a layer, thinner ones filled up with sites that stay zero.
    """

    def build(self, layout: BlockLayout) -> LatticeTransform:
        """Return a transform of event shape ``(layout.size, *layout.count)``."""
        ...


@dataclass(frozen=True)
class RealNVP:
    """See :func:`~pyro_neuralrg.transforms.coupling.realnvp_block`."""

    name: ClassVar[str] = "realnvp"
    fills_up_blocks: ClassVar[bool] = True
    layers: int = 10
    hidden: tuple[int, ...] = (10, 10, 10)
    activation: str = "elu"

    def build(self, layout: BlockLayout) -> LatticeTransform:
        """One Real NVP shared by all blocks, or one for each."""
        options: Any = dataclasses.asdict(self)
        options |= {"odd": layout.odd, "context_dim": layout.context_dim}
        if layout.per_block:
            return _Blockwise(layout, functools.partial(realnvp_block, **options))
        return realnvp_block(layout.size, count=layout.count, **options)


@dataclass(frozen=True)
class Neighbour:
    """See :func:`~pyro_neuralrg.transforms.coupling.neighbour_coupling`."""

    name: ClassVar[str] = "neighbour"
    sees_sites: ClassVar[bool] = True
    fills_up_blocks: ClassVar[bool] = True
    layers: int = 8
    hidden: tuple[int, ...] = (24,)
    num_tanh: int = 2
    response: float = 1.0
    max_log_scale: float = 2.0

    def build(self, layout: BlockLayout) -> LatticeTransform:
        """Couplings shared by all blocks."""
        _refuse_per_block(layout, self.name)
        given = ("odd", "boundary", "context_dim", "features", "components")
        options: Any = dataclasses.asdict(self) | {name: getattr(layout, name) for name in given}
        return neighbour_coupling(layout.block, layout.count, **options)


@dataclass(frozen=True)
class BlockFactory:
    """A user's block: ``factory(size)`` returns a TransformModule of event shape ``(size,)``."""

    factory: Callable[[int], TransformModule]

    def build(self, layout: BlockLayout) -> LatticeTransform:
        """The block, shared by all blocks of the region or copied for each."""
        _refuse_odd(layout)
        return _Blockwise(layout, self.factory)


@dataclass(frozen=True)
class LayerFactory:
    """A user's layer: ``factory(size, count)`` returns one of event shape ``(size, *count)``."""

    factory: Callable[[int, tuple[int, ...]], TransformModule]

    def build(self, layout: BlockLayout) -> LatticeTransform:
        """The layer."""
        _refuse_per_block(layout, "a layer factory")
        _refuse_odd(layout)
        made = self.factory(layout.size, layout.count)
        transform = _check_module(made, layout, 1 + len(layout.count))
        return _Foreign((layout.size, *layout.count), transform)


BIJECTORS: dict[str, type[Any]] = {RealNVP.name: RealNVP, Neighbour.name: Neighbour}
"""Bijectors by the names that ``hierarchical_flow`` accepts."""


def as_bijector(bijector: Any) -> Bijector:
    """The factory that a name, a mapping of a name and options, or a callable stands for."""
    if isinstance(bijector, str):
        bijector = {"name": bijector}
    if isinstance(bijector, Mapping):
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in bijector.items()}
        name = check_choice("bijector", options.pop("name", None), BIJECTORS)
        known = {field.name for field in dataclasses.fields(BIJECTORS[name])}
        if not set(options) <= known:
            raise ValueError(
                f"bijector {name!r} has options {sorted(options)}; accepted: {sorted(known)}"
            )
        return BIJECTORS[name](**options)
    builds = hasattr(bijector, "build")
    if builds and not isinstance(bijector, type):
        return bijector
    if callable(bijector) and not builds and not isinstance(bijector, Transform):
        return BlockFactory(bijector)
    raise TypeError(
        f"bijector is {bijector!r}; accepted: one of {', '.join(BIJECTORS)}, a factory such as "
        "RealNVP(layers=4), not the class, or a callable size -> TransformModule"
    )


def bijector_config(bijector: Bijector) -> dict[str, Any]:
    """A factory as JSON data; a ValueError if it is not one of ``BIJECTORS``."""
    if type(bijector) not in BIJECTORS.values():
        raise ValueError(
            f"bijector {bijector!r} cannot be written as JSON; accepted: {', '.join(BIJECTORS)}. "
            "A flow of your own blocks is saved by its state_dict() and built again by your code"
        )
    options: Any = {"name": bijector.name, **dataclasses.asdict(bijector)}  # type: ignore[call-overload, attr-defined]
    return dict(json.loads(json.dumps(options, default=lambda number: number.item())))


def _refuse_per_block(layout: BlockLayout, what: str) -> None:
    if layout.per_block:
        raise ValueError(
            f"weights is 'block', but {what} acts on all blocks of a layer at once; "
            "accepted: 'scale' or 'shared', or a block bijector such as 'realnvp'"
        )


def _refuse_odd(layout: BlockLayout) -> None:
    if layout.odd:
        raise ValueError(
            "odd is True, but whether your own bijector commutes with x -> -x is not known; "
            f"accepted: odd=False, or one of {', '.join(BIJECTORS)}. "
            "SymmetrizedFlow makes the density even for any flow"
        )


def _check_module(transform: Any, layout: BlockLayout, event_dim: int) -> Any:
    """Return what a user's factory has made, if it can serve."""
    returned = f"the bijector factory returned {type(transform).__name__}"
    conditional = isinstance(transform, ConditionalTransformModule)
    if conditional != bool(layout.context_dim):
        raise ValueError(
            f"{returned}; accepted: a ConditionalTransformModule in a conditional flow, and only "
            f"there, or one of {', '.join(BIJECTORS)}"
        )
    if conditional:
        return transform
    # a ComposeTransformModule is a transform and a module, but no TransformModule
    if not (isinstance(transform, Transform) and isinstance(transform, nn.Module)):
        raise TypeError(f"{returned}; accepted: a TransformModule")
    if transform.domain.event_dim > event_dim or not transform.bijective:
        raise ValueError(
            f"{returned} of event_dim {transform.domain.event_dim}; "
            f"accepted: a bijective TransformModule of event_dim at most {event_dim}"
        )
    return transform


class _Foreign(LatticeTransform):
    """Any (Conditional)TransformModule, batch on its left, under our batch-last contract."""

    def __init__(self, event_shape: tuple[int, ...], transform: Any) -> None:
        super().__init__(event_shape)
        self.transform = transform

    def _pass(self, h: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        if h.shape[-1] == 0:  # which some of Pyro's transforms refuse
            return h, h.new_zeros(0)
        transform = self.transform
        if isinstance(transform, ConditionalTransformModule):
            if context is None:
                raise ValueError(
                    f"context is None; accepted for {type(transform).__name__}: a tensor"
                )
            transform = transform.condition(context.movedim(-1, 0))
        run = inverse_and_ladj if inverse else forward_and_ladj
        found, ladj = run(transform, h.movedim(-1, 0).contiguous(), len(self.event_shape))
        self._drop_cache()
        return found.movedim(0, -1), ladj

    def _drop_cache(self) -> None:
        """Forget non-leaf tensors: with them the flow could not be copied, and could go stale."""
        for part in _parts(self.transform):
            for name, value in part.__dict__.items():
                if name == "_cached_x_y":
                    part.__dict__[name] = (None, None)
                elif name.startswith("_cache") and isinstance(value, Tensor):
                    part.__dict__[name] = None


def _parts(transform: Transform) -> Iterator[Any]:
    """A transform, the modules inside it and, for a composition, those that are no modules too."""
    yield transform
    if isinstance(transform, nn.Module):
        yield from transform.modules()
    for part in getattr(transform, "parts", ()):
        yield from _parts(part)


class _Blockwise(LatticeTransform):
    """A block bijector on every block of a region: one for all, or one each."""

    def __init__(self, layout: BlockLayout, factory: Callable[[int], TransformModule]) -> None:
        super().__init__((layout.size, *layout.count))
        copies = math.prod(layout.count) if layout.per_block else 1
        self.blocks = nn.ModuleList()
        for _ in range(copies):
            block: Any = factory(layout.size)
            if not (isinstance(block, LatticeTransform) and block.event_shape == (layout.size,)):
                block = _Foreign((layout.size,), _check_module(block, layout, 1))
            self.blocks.append(block)

    def _pass(self, h: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        own: list[Any] = list(self.blocks)
        passes = [one.inverse if inverse else one.forward for one in own]
        blocks = h.flatten(1, -2)  # (size, blocks, batch)
        if len(passes) == 1:  # which takes the blocks for a part of the batch
            of_blocks = None if context is None else context.repeat(1, blocks.shape[1])
            out, ladj = passes[0](blocks.flatten(1), of_blocks)
            return out.view(h.shape), ladj.view(blocks.shape[1:]).sum(0)
        pairs = [one(piece, context) for one, piece in zip(passes, blocks.unbind(1), strict=True)]
        out, ladj = (torch.stack(parts, dim=-2) for parts in zip(*pairs, strict=True))
        return out.view(h.shape), ladj.sum(0)
