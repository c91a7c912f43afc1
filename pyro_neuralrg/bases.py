# SPDX-License-Identifier: Apache-2.0
"""Base densities p(z) of a flow: independent normals, or two modes of the coarsest variable."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints, transform_to

from pyro_neuralrg.arguments import check_choice, check_number, check_values

MAX_SEPARATION = 4.0
"""With more, what lies between the modes is lost in the digits of a double."""
NEWTON_STEPS = 12
"""From a normal to the two modes; at most 10 were needed, for the largest separation."""
FAR = 8.0
"""Distance from which a tail probability is not inverted directly."""


@dataclass(frozen=True)
class StandardNormal:
    """Independent standard normals, the paper's base.

    To write another base: derive, define all methods below for latents of any batch shape followed
    by ``event_dim`` dimensions, and let :func:`base_from_config` know it.
    """

    def log_prob(self, z: Tensor, event_dim: int) -> Tensor:
        """ln p(z) in nats, of batch shape."""
        values = _log_normal(z)
        return values.flatten(-event_dim).sum(-1) if event_dim else values

    def score(self, z: Tensor, event_dim: int) -> Tensor:
        """d ln p / dz, of the shape of z."""
        return -z

    def sample(self, shape: Sequence[int], event_dim: int, **options: Any) -> Tensor:
        """Draw latents of ``shape``, batch and event; ``options`` are those of ``torch.randn``."""
        return torch.randn(tuple(shape), **options)

    def from_normal(self, u: Tensor, event_dim: int) -> tuple[Tensor, Tensor]:
        """Map standard normals u to draws z of the base; return z and ``ln |det dz/du|``."""
        return u, u.new_zeros(u.shape[: u.dim() - event_dim])

    def to_normal(self, z: Tensor, event_dim: int) -> tuple[Tensor, Tensor]:
        """Undo :meth:`from_normal`, with the same ``ln |det dz/du|``."""
        return z, z.new_zeros(z.shape[: z.dim() - event_dim])

    @property
    def config(self) -> dict[str, Any]:
        """Name and numbers for :func:`base_from_config`, as JSON data."""
        return {"name": type(self).__name__, **vars(self)}


NORMAL = StandardNormal()
"""The base of transforms that carry none of their own."""


@dataclass(frozen=True)
class TwoModes(StandardNormal):
    r"""Standard normals but for the first (coarsest) variable, which has two modes.

    .. math:: p(z_1) = \tfrac12 N(z_1; -m, 1) + \tfrac12 N(z_1; m, 1)

    For targets that may have two phases, which a smooth flow cannot easily make of one mode.

    Args:
        separation: m in (0, 4], the distance of either mode from zero, in standard deviations.

    Example:
        >>> base = TwoModes(3.0)
        >>> z, _ = base.from_normal(torch.tensor([1.0, 0.5]), event_dim=1)
        >>> z
        tensor([3.4752, 0.5000])
    """

    separation: float

    def __post_init__(self) -> None:
        accepted = f"a number in (0, {MAX_SEPARATION:g}]"
        m = check_number("separation", self.separation, accepted, above=0, most=MAX_SEPARATION)
        object.__setattr__(self, "separation", m)

    def log_prob(self, z: Tensor, event_dim: int) -> Tensor:
        m, first = self.separation, _first(z, event_dim)
        ratio = torch.logaddexp(m * first, -m * first) - 0.5 * m * m - math.log(2.0)
        return super().log_prob(z, event_dim) + ratio

    def score(self, z: Tensor, event_dim: int) -> Tensor:
        m, first = self.separation, _first(z, event_dim)
        return _with_first(-z, m * torch.tanh(m * first) - first, event_dim)

    def sample(self, shape: Sequence[int], event_dim: int, **options: Any) -> Tensor:
        """Draw latents of ``shape``: normals, and a sign for the mode."""
        z = super().sample(shape, event_dim, **options)
        sign = torch.where(torch.rand(z.shape[: z.dim() - event_dim], **options) < 0.5, -1.0, 1.0)
        return _with_first(z, _first(z, event_dim) + self.separation * sign.to(z), event_dim)

    def from_normal(self, u: Tensor, event_dim: int) -> tuple[Tensor, Tensor]:
        """Map standard normals to draws by the increasing, odd map, very steep at u = 0."""
        return self._on_first(u, event_dim, self._from_normal)

    def to_normal(self, z: Tensor, event_dim: int) -> tuple[Tensor, Tensor]:
        return self._on_first(z, event_dim, self._to_normal)

    def _on_first(
        self, value: Tensor, event_dim: int, change: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        first = _first(value, event_dim).double()
        sign = torch.where(first < 0, -1.0, 1.0)
        size, log_slope = change(sign * first)
        changed = _with_first(value, (sign * size).to(value.dtype), event_dim)
        return changed, log_slope.to(value.dtype)

    def _from_normal(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """From u >= 0 to z >= 0: Newton's iteration for equal logarithms of the tails.

        It converges from the right: the log tail is concave and falls. The last two steps give
        first and second derivatives, by the implicit function theorem.
        """
        goal = _log_upper(u)
        with torch.no_grad():
            z = u + self.separation
            for _ in range(NEWTON_STEPS):
                z = z + (self._log_tail(z) - goal) / self._hazard(z)
        for _ in range(2):
            z = z + (self._log_tail(z) - goal) / self._hazard(z).detach()
        return z, _log_normal(u) - self._log_density(z)

    def _to_normal(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """From z >= 0 to u >= 0, likewise."""
        goal = self._log_tail(z)
        with torch.no_grad():
            u = -torch.special.ndtri(goal.exp())
            far = (z - self.separation).clamp(min=0.0)
            u = torch.where(far > FAR, (far.square() + 2 * math.log(2.0)).sqrt(), u)
        for _ in range(3):
            tail = _log_upper(u)
            hazard = (_log_normal(u) - tail).detach().exp()
            u = u + (tail - goal) / hazard
        return u, _log_normal(u) - self._log_density(z)

    def _log_tail(self, z: Tensor) -> Tensor:
        """ln of the probability of more than z >= 0."""
        tails = _log_upper(z - self.separation), _log_upper(z + self.separation)
        return torch.logaddexp(*tails) - math.log(2.0)

    def _log_density(self, z: Tensor) -> Tensor:
        """ln p(z) of the first variable for z >= 0."""
        folded = torch.log1p(torch.exp(-2 * self.separation * z)) - math.log(2.0)
        return _log_normal(z - self.separation) + folded

    def _hazard(self, z: Tensor) -> Tensor:
        return (self._log_density(z) - self._log_tail(z)).exp()


def base_from_config(config: Mapping[str, Any]) -> StandardNormal:
    """Build the base that ``base.config`` describes."""
    numbers = dict(config)
    kinds = {kind.__name__: kind for kind in (StandardNormal, TwoModes)}
    return kinds[check_choice("base", numbers.pop("name", None), kinds)](**numbers)


def base_of(flow: Any) -> StandardNormal:
    """The base that a flow carries; standard normals for a transform that carries none."""
    base = getattr(flow, "base", None)
    return base if isinstance(base, StandardNormal) else NORMAL


class FieldDistribution(dist.TorchDistribution):
    """A distribution of real tensors of one shape."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """All real tensors."""
        return constraints.independent(constraints.real, self.event_dim)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same distribution with another batch shape."""
        new = copy.copy(self)
        new._batch_shape = torch.Size(batch_shape)
        return new


class BaseDistribution(FieldDistribution):
    """A base as a Pyro distribution of one event.

    Args:
        base: the density of the latents.
        shape: of an event.
        from_normal: let samplers in unconstrained space, such as Pyro's NUTS, see standard normals
            u with ``z = base.from_normal(u)``.
        **options: dtype and device of draws.
    """

    def __init__(
        self, base: StandardNormal, shape: Sequence[int], from_normal: bool = False, **options: Any
    ) -> None:
        self.base, self.from_normal, self.options = base, from_normal, options
        super().__init__(torch.Size(), torch.Size(shape), validate_args=False)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base!r}, {tuple(self.event_shape)})"

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        if self.from_normal:
            return LatentsOf(self.base, self.event_dim)
        return constraints.independent(constraints.real, self.event_dim)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw latents."""
        shape = (*sample_shape, *self.batch_shape, *self.event_shape)
        return self.base.sample(shape, self.event_dim, **self.options)

    def log_prob(self, value: Tensor) -> Tensor:
        """ln p(value) in nats."""
        check_values("value", value, tuple(self.event_shape))
        batch = value.shape[: value.dim() - self.event_dim]
        batch = broadcast_shape(batch, self.batch_shape)
        return self.base.log_prob(value, self.event_dim).expand(batch)


class LatentsOf(constraints.independent):
    """Real tensors that standard normals reach by ``from_normal`` of a base."""

    def __init__(self, base: StandardNormal, event_dim: int) -> None:
        super().__init__(constraints.real, event_dim)
        self.base = base


class FromNormal(Transform):
    """``from_normal`` of a base as a transform."""

    bijective = True

    def __init__(self, base: StandardNormal, event_dim: int) -> None:
        super().__init__()
        self.base = base
        self.domain = self.codomain = constraints.independent(constraints.real, event_dim)

    def _call(self, x: Tensor) -> Tensor:
        return self.base.from_normal(x, self.domain.event_dim)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.base.to_normal(y, self.domain.event_dim)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """``ln |det dz/du|``, from the two densities."""
        event_dim = self.domain.event_dim
        return NORMAL.log_prob(x, event_dim) - self.base.log_prob(y, event_dim)


@transform_to.register(LatentsOf)
@biject_to.register(LatentsOf)
def _biject_to_latents(constraint: LatentsOf) -> FromNormal:
    return FromNormal(constraint.base, constraint.event_dim)


def _first(value: Tensor, event_dim: int) -> Tensor:
    return value.flatten(-event_dim)[..., 0]


def _with_first(value: Tensor, first: Tensor, event_dim: int) -> Tensor:
    """Another first entry of each event."""
    flat = value.flatten(-event_dim)
    return torch.cat([first.unsqueeze(-1), flat[..., 1:]], -1).reshape(value.shape)


def _log_upper(z: Tensor) -> Tensor:
    """ln of the probability that a standard normal exceeds z (torch's log_ndtr knows no vmap)."""
    return torch.special.erfcx(z / math.sqrt(2.0)).log() - math.log(2.0) - 0.5 * z.square()


def _log_normal(z: Tensor) -> Tensor:
    return -0.5 * z.square() - 0.5 * math.log(2 * math.pi)
