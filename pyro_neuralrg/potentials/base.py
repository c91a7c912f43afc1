# SPDX-License-Identifier: Apache-2.0
"""The base of all targets: an energy of fields on a lattice, also as a Pyro program."""

from __future__ import annotations

import copy
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_neuralrg.arguments import (
    LARGEST_SEED,
    check_integer,
    check_number,
    check_tensor,
    check_type,
    check_values,
    copied,
    see,
)
from pyro_neuralrg.bases import NORMAL, StandardNormal, TwoModes
from pyro_neuralrg.lattice import check_boundary, check_shape
from pyro_neuralrg.observables.configurations import Observable, field_observables
from pyro_neuralrg.observables.vectors import vector_observables
from pyro_neuralrg.runtime.console import warn_user
from pyro_neuralrg.spectral import check_spectrum
from pyro_neuralrg.transforms import HierarchicalFlow
from pyro_neuralrg.transforms.bijectors import as_bijector

AnyPotential = TypeVar("AnyPotential", bound="LatticePotential")

TWO_PHASES = TwoModes(3.0)
"""Base of flows where there may be two phases; measured at 8 x 8: far above Tc of the Ising model,
where there is but one, it costs 0.01 nats (T = 2.9). After 400 steps on phi^4 it lowers the loss by
0.03 nats in the broken phase (kappa = 0.3, lam = 0.022) and raises it by 0.06 in the symmetric one
(m^2 = -4, g = 36, a correlation length of 1)."""


ORIGIN = 1e-12
"""Square of the smallest length of a vector, where a root still has derivatives."""

SEPARATE = 1e-3
"""Largest difference of the energies of a field alone and in a batch, relative to the largest of
them (where it is above 1 nat): sums of another order round otherwise."""

MOVED = 1e-4
"""Change of an energy as a field is moved that is no rounding, relative to that of the field."""

LEAST_OPEN_SIDE = 6
"""Sides of an open lattice on which a field may be moved without touching its edges."""

MOST_PROBED = 1024
"""Sites of an energy whose curvature about x = 0 is looked at: twice as many gradients."""

FEATURE_STEP = 0.5
"""A field of order one, so that the differences of gradients know of quartic terms as well."""


class LatticePotential(ABC):
    r"""An unnormalised density :math:`\pi(x) = e^{-\text{energy}(x)}` of fields x on a lattice.

    To write another one, call ``super().__init__`` and define

    * ``energy(x)``: x of shape ``batch + shape`` (any batch, also none) to nats of shape ``batch``,
      computed in the dtype and on the device of x, without in-place writes or branches on values,
      so that ``vmap`` works. Call ``self.check_field(x)`` first.
    * where they are known: ``log_partition``, ``sample_reference``, ``heated``, and the closed form
      ``energy_and_gradient``, on which samplers spend their time.

    Numbers that the energy needs are registered with ``self._register(name, tensor)`` in float64
    and read with ``self._constant(name, x)``, which has the dtype and the device of x; attributes
    named in ``_shown`` are printed. For one energy of your own there is :meth:`from_energy`.

    Args:
        shape: lattice shape, one to three sides >= 1.
        boundary: "periodic" or "open".
        even: energy(x) == energy(-x).
        spectrum: eigenvalues of the covariance of the Gaussian part, if there is one: of the
            lattice's shape, in the order that :mod:`pyro_neuralrg.spectral` describes.
        components: of a vector field at each site; 0 for a scalar field.

    Attributes:
        shape: of a field: the lattice shape, of a vector field followed by ``components``.
        lattice: the lattice shape.
        boundary, even, spectrum, components: as above; the spectrum in float64 on the CPU.
        base: p(z) of its flows, two modes where there may be two phases.
        device: of the fields it takes; see :meth:`to`.
    """

    base: StandardNormal = NORMAL
    _shown: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """See that a new energy is not sampled with the gradient of an inherited one."""
        super().__init_subclass__(**kwargs)
        if "energy" in vars(cls) and "energy_and_gradient" not in vars(cls):
            cls.energy_and_gradient = LatticePotential.energy_and_gradient  # type: ignore[method-assign]

    def __init__(
        self,
        shape: Iterable[int],
        boundary: str = "periodic",
        *,
        even: bool = False,
        spectrum: Tensor | None = None,
        components: int = 0,
    ) -> None:
        self.lattice = check_shape(shape)
        self.components = check_integer("components", components, 0)
        self.shape = (*self.lattice, self.components) if self.components else self.lattice
        self.boundary = check_boundary(boundary)
        self.even = even
        self.spectrum = spectrum
        if spectrum is not None:
            check_spectrum(spectrum, boundary, self.lattice, self.components)
            double = torch.complex128 if spectrum.is_complex() else torch.float64
            self.spectrum = spectrum.detach().to("cpu", double)
        self.device = torch.device("cpu")
        self._constants: dict[str, dict[torch.dtype, Tensor]] = {}

    @abstractmethod
    def energy(self, x: Tensor) -> Tensor:
        """-ln pi(x) in nats, of the batch shape and dtype of x; raises as :meth:`check_field`."""

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The energy and its gradient, of x's shape, both detached: here by autograd."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            energy = self.energy(leaf)
            (gradient,) = torch.autograd.grad(energy.sum(), leaf)
        return energy.detach(), gradient

    def potential_fn(self, params: Mapping[str, Tensor]) -> Tensor:
        """The energy of ``params["x"]``, for Pyro's ``HMC`` and ``NUTS``."""
        if "x" not in params:
            raise ValueError(f"params has the sites {sorted(params)}; accepted: a mapping with 'x'")
        return self._checked_energy(params["x"])

    def model(self) -> Tensor:
        """A Pyro program of a field "x" in the default dtype, with log-density ``-energy(x)``."""
        zero = torch.zeros((), device=self.device)
        return pyro_program(self.energy, self.shape, zero, self._whose_energy)

    def try_energy(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Fields of standard normals in the dtype of ``like``, and their energies, checked."""
        # more fields than any side has sites, so that no wrong shape passes by chance
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(max(self.shape) + 1, *self.shape, generator=generator)
        x = x.to(self.device, like.dtype)
        with torch.no_grad():
            nats = self._checked_energy(x)
        self.try_alone(x)
        return x, nats

    def try_alone(self, like: Tensor) -> None:
        """See that the energy of a field is that of it alone, and leaves it as it is."""
        pair = trial_pair(self.shape, like)
        check_separate(self.energy, pair, self._whose_energy, in_place=False)

    def log_partition(self) -> float:
        """Ln Z, the log of the integral of exp(-energy(x)) over all fields, exactly, in nats.

        A NotImplementedError says why where it is not known.
        """
        raise NotImplementedError(f"log_partition: no exact ln Z is known for {self!r}")

    def sample_reference(self, n: int, seed: int | None = None) -> Tensor:
        """Draw ``n`` fields from pi / Z, ``(n,) + shape`` in torch's default dtype, without a flow.

        Without a ``seed`` torch's own random numbers continue. A NotImplementedError without such
        a sampler.
        """
        raise NotImplementedError(f"sample_reference: no reference sampler is known for {self!r}")

    def heated(self, factor: float) -> LatticePotential:
        """The same model at ``factor`` > 0 times its temperature: here the energy divided by it."""
        return _Heated(self, check_number("factor", factor, "a finite number > 0", above=0))

    def observables(self) -> dict[str, Observable]:
        """Observables that fit the target, by name, ``batch + shape -> batch``; can be pickled.

        Here those of :func:`~pyro_neuralrg.observables.field_observables`, of a vector field of
        :func:`~pyro_neuralrg.observables.vector_observables`.
        """
        if self.components:
            return vector_observables(self.lattice, self.components, self.boundary)
        return field_observables(self.lattice, self.boundary)

    def flow(self, **options: Any) -> HierarchicalFlow:
        """Build a flow that knows this target's shape, boundary, spectrum, symmetry and phases.

        ``options`` of :meth:`~pyro_neuralrg.transforms.HierarchicalFlow.build` take precedence.
        """
        known: dict[str, Any] = {"boundary": self.boundary, "components": self.components}
        known |= {"odd": self.even, "base": self.base}
        if options.get("covariance") is None:  # which stands in place of the potential's own
            known["spectrum"] = self.spectrum
        return HierarchicalFlow.build(self.lattice, **known | options)

    def to(self: AnyPotential, device: torch.device | str) -> AnyPotential:
        """The same potential for fields on another device (itself if it is there already)."""
        where = torch.empty(0, device=device).device
        if where == self.device:
            return self
        moved = copy.copy(self)
        moved.device = where
        moved._constants = {}
        for name, values in self._constants.items():
            moved._register(name, values[torch.float64].cpu())
        return moved

    def check_field(self, x: Tensor) -> None:
        """Raise a TypeError or ValueError if x has another dtype, shape or device."""
        if check_values("x", x, self.shape).device != self.device:
            raise ValueError(
                f"x is on the device {x.device}; accepted: {self.device}, where the potential is "
                f"(move it with potential.to({str(x.device)!r}))"
            )

    @property
    def _whose_energy(self) -> str:
        """What messages call the energy."""
        return f"energy of {self!r}"

    @property
    def _axes(self) -> tuple[int, ...]:
        """Dimensions of a field."""
        return tuple(range(-len(self.shape), 0))

    def _checked_energy(self, x: Tensor) -> Tensor:
        return check_energy(self.energy(x), x, self.shape, self._whose_energy)

    def _register(self, name: str, value: Tensor) -> None:
        """Keep a constant in both usual precisions."""
        # not cast at first use: under vmap or inference mode that would keep a tensor of that mode
        exact = value.detach().to(self.device, torch.float64)
        self._constants[name] = {torch.float64: exact, torch.float32: exact.float()}

    def _constant(self, name: str, like: Tensor) -> Tensor:
        """A registered constant in the dtype of ``like``."""
        known = self._constants[name]
        return known[like.dtype] if like.dtype in known else known[torch.float32].to(like.dtype)

    def __repr__(self) -> str:
        return describe(self, self._shown)

    @staticmethod
    def from_energy(
        shape: Iterable[int],
        fn: Callable[[Tensor], Tensor],
        *,
        even: bool = False,
        boundary: str = "periodic",
        spectrum: Tensor | None = None,
        components: int = 0,
        device: torch.device | str = "cpu",
    ) -> LatticePotential:
        """Make a potential of an energy function, which is tried once on random fields.

        ``fn`` takes fields ``(batch,) + shape`` on the ``device``, vector fields ``(batch,) + shape
        + (components,)``, and returns nats ``(batch,)``; the other arguments are those of the
        class. If it changes as a field is moved by a site,
        :meth:`flow` tells the sites apart: see :func:`site_features_of`. On an open lattice it is
        not moved along sides below 6, whose sites are taken to be alike. Of an energy with two
        phases (a double well) the flow is ``flow(base=TwoModes(3.0))``.

        Raises:
            TypeError, ValueError: if fn returns no floating tensor, another shape or NaN, is not
                even though ``even`` says so, or gives a field other nats beside other fields.

        Example:
            >>> target = LatticePotential.from_energy((4, 4), lambda x: x.pow(4).sum((-1, -2)))
            >>> target.energy(torch.ones(7, 4, 4)).shape
            torch.Size([7])
        """
        check_type("fn", fn, Callable, "a function of fields that returns nats")
        options: Any = {"even": even, "spectrum": spectrum, "components": components}
        potential = _EnergyFunction(shape, fn, boundary=boundary, **options).to(device)
        x, nats = potential.try_energy(like=torch.empty(0))
        if bool(nats.isnan().any()):
            raise ValueError("fn returned NaN for a field of standard normals; accepted: energies")
        if even and not torch.allclose(nats, potential.energy(-x).detach(), rtol=1e-3, atol=1e-3):
            raise ValueError("even is True but fn(x) != fn(-x); accepted: even=False, an even fn")
        potential.is_uniform = x.is_meta or is_uniform(potential, x)
        return potential


class _EnergyFunction(LatticePotential):
    """A potential of a user's energy function, see :meth:`LatticePotential.from_energy`."""

    _whose_energy = "fn"

    def __init__(self, shape: Iterable[int], fn: Callable[..., Tensor], **options: Any) -> None:
        super().__init__(shape, **options)
        self.fn = fn
        self.is_uniform = True

    def flow(self, **options: Any) -> HierarchicalFlow:
        """As :meth:`LatticePotential.flow`; of an energy that tells sites apart it does so too."""
        if not self.is_uniform:
            options = {**self._how_sites_differ(options), **options}
        return super().flow(**options)

    def _how_sites_differ(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options of flows that treat sites differently, as far as the given ones allow it."""
        if "site_features" in options or "weights" in options:
            return {}
        if not getattr(as_bijector(options.get("bijector", "neighbour")), "sees_sites", False):
            return {"weights": "block"}
        features = site_features_of(self, odd=options.get("odd", self.even))
        if features is not None:
            return {"site_features": features}
        warn_user(
            "fn changes as a field is moved by a site, but neither its gradient nor its curvature "
            "about x = 0 tells the sites apart, and the flow will treat them alike: give "
            "flow(site_features=...), numbers of order one, (channels,) + shape, or "
            "flow(bijector='realnvp', weights='block')"
        )
        return {}

    def energy(self, x: Tensor) -> Tensor:
        self.check_field(x)
        batch = x.shape[: x.dim() - len(self.shape)]
        fields = x.reshape(math.prod(batch), *self.shape)
        return check_energy(self.fn(copied(fields)), fields, self.shape, "fn").reshape(batch)


class _Heated(LatticePotential):
    """A potential's energy divided by a factor."""

    def __init__(self, cold: LatticePotential, factor: float) -> None:
        spectrum = None if cold.spectrum is None else factor * cold.spectrum
        options: Any = {"even": cold.even, "spectrum": spectrum, "components": cold.components}
        super().__init__(cold.lattice, cold.boundary, **options)
        self.cold = cold
        self.factor = factor
        self.device = cold.device

    def energy(self, x: Tensor) -> Tensor:
        return self.cold.energy(x) / self.factor

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energy, gradient = self.cold.energy_and_gradient(x)
        return energy / self.factor, gradient / self.factor

    def to(self, device: torch.device | str) -> _Heated:
        moved = self.cold.to(device)
        return self if moved is self.cold else _Heated(moved, self.factor)


def is_uniform(potential: LatticePotential, x: Tensor) -> bool:
    """True if the energies of fields stay the same as these are moved by a site along each axis.

    On an open lattice fields that vanish at its edges are moved, on sides of at least
    ``LEAST_OPEN_SIDE`` sites.
    """
    is_open, dims = potential.boundary == "open", len(potential.shape)
    least = LEAST_OPEN_SIDE if is_open else 2
    axes = [axis - dims for axis, side in enumerate(potential.lattice) if side >= least]
    inside = torch.ones_like(x)
    for axis in axes if is_open else ():
        inside.movedim(axis, -1)[..., [0, 1, -3, -2, -1]] = 0.0
    x = x * inside
    nats = potential.energy(x).detach()
    size = nats.nan_to_num(0.0, 0.0, 0.0).abs().clamp(min=1.0)
    moved = (potential.energy(x.roll(1, axis)).detach() for axis in axes)
    rounding: Any = {"rtol": 0.0, "atol": MOVED, "equal_nan": True}
    return all(torch.allclose(other / size, nats / size, **rounding) for other in moved)


def site_features_of(potential: LatticePotential, odd: bool) -> Tensor | None:
    r"""What an energy E tells of its sites about x = 0, ``(channels,)`` + lattice; None if nothing.

    The gradient (not for an odd flow: it is odd itself), the curvature :math:`E_{ii}`, and
    :math:`E_{i,i+a}` of each site and the next one along each axis, of vectors all components, as
    far as they differ between sites, each less its mean in units of its deviation. By differences
    of the gradient at 2 N fields of N numbers, ``FEATURE_STEP`` away; only the gradient for more
    than ``MOST_PROBED``.
    """
    shape, lattice, own = potential.shape, potential.lattice, max(1, potential.components)
    size, zero = math.prod(shape), torch.zeros(1, *shape, device=potential.device)
    gradient = potential.energy_and_gradient(zero)[1].reshape(*lattice, own)
    channels = [] if odd else [*gradient.unbind(-1)]
    if size <= MOST_PROBED:
        moves = FEATURE_STEP * torch.eye(size, device=zero.device).reshape(size, *shape)
        up, down = (potential.energy_and_gradient(sign * moves)[1] for sign in (1, -1))
        hessian = ((up - down) / (2 * FEATURE_STEP)).reshape(size // own, own, size // own, own)
        index = torch.arange(size // own, device=zero.device).reshape(lattice)
        axes = [axis for axis, side in enumerate(lattice) if side > 1]
        nexts = [index, *(index.roll(-1, axis) for axis in axes)]
        pairs = [(a, b) for a in range(own) for b in range(own)]
        channels += [hessian[index, a, other, b] for other in nexts for a, b in pairs]
    known = []
    for channel in channels:
        deviation = float(channel.std(correction=0))
        if math.isfinite(deviation) and deviation > MOVED * float(channel.abs().max()):
            known.append((channel - channel.mean()) / deviation)
    return torch.stack(known) if known else None


def describe(potential: Any, shown: Iterable[str]) -> str:
    """The repr of a potential or a family, with the numbers and tuples of these names."""
    given = {name: getattr(potential, name) for name in shown}
    if getattr(potential, "components", 0):
        given["components"] = potential.components
    numbers = "".join(
        f", {name}={f'{value:.9g}' if isinstance(value, float) else value}"
        for name, value in given.items()
    )
    shape, kind = getattr(potential, "lattice", potential.shape), type(potential).__name__
    return f"{kind.lstrip('_')}({shape}{numbers}, boundary={potential.boundary!r})"


def check_energy(nats: Any, x: Tensor, shape: tuple[int, ...], whose: str) -> Tensor:
    """Return energies if they are one number per field."""
    check_tensor(f"the result of {whose}", nats)
    batch = tuple(x.shape[: x.dim() - len(shape)])
    if tuple(nats.shape) != batch:
        raise ValueError(
            f"{whose} returned shape {tuple(nats.shape)} for fields of shape {tuple(x.shape)}; "
            f"accepted: one number per field, {batch}{see('error-energy-batch')}"
        )
    return nats


def trial_pair(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Two fields, one above zero and one below it, in the dtype and on the device of ``like``."""
    # of different means: what takes off the mean of a batch changes their energies by much
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    return (x + torch.tensor([1.0, -1.0]).view(2, *(1,) * len(shape))).to(like) / 2


def check_separate(
    energy: Callable[..., Tensor], x: Tensor, whose: str, in_place: bool = True, *rows: Tensor
) -> None:
    """Raise a ValueError if the energy of a field depends on the other fields of the batch.

    Also if it writes to the field, unless ``in_place``, for functions that are given copies.
    ``rows`` are what it takes beside the fields, one for each.
    """
    if x.is_meta:
        return  # there are no numbers to compare
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as of the spread of a single field
        given = copied(x)
        together = energy(given, *rows)
        if not in_place and not torch.equal(given, x):
            raise ValueError(f"{whose} writes to its field; accepted: no operations in place")
        if not isinstance(together, Tensor) or together.shape != x.shape[:1]:
            return  # as is said when it is used
        each = zip(*(part.split(1) for part in (x, *rows)), strict=True)
        alone = torch.stack([energy(*copied(field)).sum() for field in each])
    largest = float(together.nan_to_num(0.0, 0.0, 0.0).abs().max().clamp(min=1.0))
    same = torch.isclose(together, alone, rtol=0.0, atol=SEPARATE * largest, equal_nan=True)
    if not bool(same.all()):
        index = int((~same).nonzero()[0])
        raise ValueError(
            f"{whose} gives {float(together[index]):.6g} nats for a field in a batch of {len(x)}, "
            f"and {float(alone[index]):.6g} for the same field alone; accepted: an energy of each "
            "field by itself, without means over the batch and without random numbers"
            f"{see('error-energy-batch')}"
        )


def pyro_program(
    energy: Callable[[Tensor], Tensor], shape: tuple[int, ...], zero: Tensor, whose: str
) -> Tensor:
    """Pyro statements of :meth:`LatticePotential.model`."""
    flat = dist.Normal(zero, 1.0).expand(shape).to_event(len(shape)).mask(False)
    x = pyro.sample("x", flat)
    pyro.factor("energy_factor", -check_energy(energy(x), x, shape, whose))
    return x


def generator_of(
    seed: int | torch.Generator | None, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator of a seed; for None, of a seed drawn by torch's own generator."""
    if isinstance(seed, torch.Generator):
        return seed
    seed = int(torch.randint(2**62, ())) if seed is None else seed
    return torch.Generator(device).manual_seed(check_integer("seed", seed, 0, LARGEST_SEED))
