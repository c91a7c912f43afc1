# SPDX-License-Identifier: Apache-2.0
"""The density that a kernel samples: energies of many chains over flat unconstrained positions."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor
from typing_extensions import Self

from pyro_neuralrg.arguments import copied
from pyro_neuralrg.bases import NORMAL, StandardNormal, base_of
from pyro_neuralrg.distributions.flow import check_flow, flow_dtype_and_device
from pyro_neuralrg.infer.pyro_internals import is_numerical, numbers_may_fail
from pyro_neuralrg.lattice import MAX_DIM, check_shape
from pyro_neuralrg.potentials.base import LatticePotential, check_separate, trial_pair
from pyro_neuralrg.transforms.base import forward_and_ladj, inverse_and_ladj


class Target(ABC):
    """An unnormalised density ``exp(-energy)`` over positions of shape ``(chains, dim)``.

    A position is the concatenation of the *unconstrained* values of all ``sites``, each flattened.
    The energies of different chains do not depend on each other: one autograd call gives the
    gradients of all.

    Attributes:
        sites: unconstrained shape of each sampled site, by name, in the order of a position.
        lattices: lattice shape of each physical site that is a field on a lattice, by name.
        flow_sites: by latent site ``z``, the physical site of a flow and the flow.
        flow: the flow in whose latent space *all* of the position lives, or None.
        base: density of positions that are draws of that flow; standard normals without one.
        lattice_potential: the potential behind the target, if there is one.
        dtype: of positions.
        device: of positions.
        chain_batch_size: chains that are evaluated at once, which bounds the memory; None for all.
        failure: the last error of energies that could not be computed, in a line; None so far.
        starts_uniformly: whether starts that are not asked for otherwise are uniform ones.
    """

    sites: dict[str, tuple[int, ...]]
    lattices: dict[str, tuple[int, ...]]
    flow_sites: Mapping[str, tuple[str, TransformModule]] = {}
    flow: TransformModule | None = None
    base: StandardNormal = NORMAL
    lattice_potential: LatticePotential | None = None
    dtype: torch.dtype
    device: torch.device
    chain_batch_size: int | None = None
    failure: str | None = None
    starts_uniformly: bool = False

    def __repr__(self) -> str:
        sites = ", ".join(f"{name} {shape}" for name, shape in self.sites.items())
        return f"{type(self).__name__}({sites or 'not set up'})"

    @property
    def dim(self) -> int:
        """Length of a position."""
        return sum(math.prod(shape) for shape in self.sites.values())

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of the only site, or ``(dim,)`` if there are several."""
        shapes = list(self.sites.values())
        return shapes[0] if len(shapes) == 1 else (self.dim,)

    @property
    def start_flow(self) -> TransformModule | None:
        """The flow whose draws are those of ``base``, for jumps; None if they are of no flow."""
        return self.flow

    def setup(self, *args: Any, **kwargs: Any) -> Target:
        """Return the target for these arguments of the model; only Pyro models take any."""
        if args or kwargs:
            raise TypeError(
                f"arguments of run(), or model_args, are for Pyro models; {type(self).__name__} "
                "takes none"
            )
        return self

    def from_base(
        self, chains: int, generator: torch.Generator | None, base: StandardNormal | None = None
    ) -> Tensor:
        """Draw positions ``(chains, dim)`` of the base, or of another one."""
        shape = self.event_shape
        options: Any = {"generator": generator, "dtype": self.dtype, "device": self.device}
        draws = (base or self.base).sample((chains, *shape), len(shape), **options)
        return draws.reshape(chains, -1)

    def in_batches(self, chain_batch_size: int | None) -> Self:
        """Return this target, evaluated for that many chains at once."""
        other = copy.copy(self)
        other.chain_batch_size = chain_batch_size
        return other

    def energy(self, positions: Tensor) -> Tensor:
        """-ln of the unnormalised density of each chain: nats, float64, shape ``(chains,)``.

        NaN where the model fails by its numbers, as with a Cholesky factor that there is not.
        """
        return self._where_possible(lambda part: (self._energy_of(part),), positions)[0]

    def energy_and_grad(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Energies, and gradients of shape ``(chains, dim)`` in the dtype of positions."""
        energy, gradient = self._where_possible(self._energy_and_grad_of, positions)
        return energy, gradient

    def _where_possible(
        self, function: Callable[[Tensor], tuple[Tensor, ...]], positions: Tensor
    ) -> tuple[Tensor, ...]:
        """Energies, and gradients if the function gives them, NaN for chains at which it fails.

        A batch that fails is halved until only the guilty chains are left; positions that are not
        finite are then not tried.
        """
        try:
            return tuple(self.by_batches(function, positions))
        except Exception as error:
            if not is_numerical(error):
                raise
            self.failure = f"{type(error).__name__}: {error}".splitlines()[0]
        energy = positions.new_full((len(positions),), math.nan, dtype=torch.float64)
        found = energy, torch.full_like(positions, math.nan)
        parts = [positions.isfinite().all(-1).nonzero().flatten()]
        while parts:
            rows = parts.pop()
            try:
                values = self.by_batches(function, positions[rows]) if len(rows) else ()
            except Exception as error:
                if not is_numerical(error):
                    raise
                parts += rows.chunk(2) if len(rows) > 1 else ()
                continue
            for column, value in zip(found, values, strict=False):
                column[rows] = value
        return found

    def by_batches(self, function: Callable[[Tensor], Any], positions: Tensor) -> Any:
        """A function's result for positions, computed a batch at a time."""
        size = self.chain_batch_size
        if size is None or len(positions) <= size:
            return function(positions)
        return concatenated([function(part) for part in positions.split(size)])

    def _evaluate(self, positions: Tensor) -> Tensor:
        """Energies of one batch, with a graph: to be defined, or else the next two."""
        raise NotImplementedError

    def _energy_of(self, positions: Tensor) -> Tensor:
        with torch.no_grad():
            return self._evaluate(positions)

    def _energy_and_grad_of(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return energy_and_gradient(self._evaluate, positions)

    @abstractmethod
    def physical(self, positions: Tensor) -> dict[str, Tensor]:
        """The model's own sites, ``batch_shape + site shape``, of such positions."""

    def latent(self, positions: Tensor) -> dict[str, Tensor]:
        """Latent sites ``z`` of the flows involved, likewise; empty in physical space."""
        return {}

    def computed(self, positions: Tensor) -> dict[str, Tensor]:
        """Sites that are functions of the others (``pyro.deterministic``), likewise."""
        return {}

    def uniform(self, chains: int, generator: torch.Generator) -> Tensor:
        """Draw positions ``(chains, dim)`` uniformly in (-2, 2), as Stan and Pyro begin."""
        options: Any = {"generator": generator, "dtype": self.dtype, "device": self.device}
        return 4.0 * torch.rand(chains, self.dim, **options) - 2.0

    def unconstrained(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What :meth:`pack` takes, of the sites' own values; the same where these are real."""
        return dict(values)

    @abstractmethod
    def initial(self, chains: int, generator: torch.Generator, start: Any = None) -> Tensor:
        """Draw starts ``(chains, dim)``.

        From "prior", "uniform", "flow", one of Pyro's ``init_to_...`` for a model, or None: of the
        flow in a latent space, else uniform for a model and of the prior for an energy.

        Raises:
            ValueError: if the target has no such starts.
        """

    def modules(self) -> list[torch.nn.Module]:
        """Modules to be frozen while sampling."""
        return []

    def same_as(self, other: Target) -> bool:
        """Report whether the other one is the same density over the same positions."""
        return type(self) is type(other) and self._source() == other._source()

    def _source(self) -> tuple[Any, ...]:
        """The identity of the density."""
        return (id(self),)

    def pack(self, params: Mapping[str, Tensor], chains: int) -> Tensor:
        """Make positions of unconstrained values ``(chains,) + site shape`` of each site.

        For a latent site of a flow either z under its own name or the physical field.

        Raises:
            ValueError: if a site is missing, unknown or of another shape.
        """
        fields = {latent: field for latent, (field, _) in self.flow_sites.items()}
        given = {name: name if name in params else fields.get(name, name) for name in self.sites}
        if set(params) != set(given.values()):
            latent = f" (or the fields {sorted(fields.values())} for the latent ones)"
            raise ValueError(
                f"initial_params has sites {sorted(params)}; accepted: {sorted(self.sites)}"
                + (latent if fields else "")
            )
        columns = []
        for name, source in given.items():
            value, accepted = torch.as_tensor(params[source]), (chains, *self.sites[name])
            if tuple(value.shape) != accepted:
                raise ValueError(
                    f"initial_params[{source!r}] has shape {tuple(value.shape)}; "
                    f"accepted: {accepted}, one start per chain"
                )
            value = value.detach().to(dtype=self.dtype, device=self.device)
            if name in self.flow_sites:
                flow = self.flow_sites[name][1]
                if source != name:
                    with torch.no_grad():
                        value = inverse_and_ladj(flow, value, flow.domain.event_dim)[0]
                value = self._unconstrain(name, value)
            columns.append(value.reshape(chains, -1))
        return torch.cat(columns, -1)

    def from_constrained(self, samples: Mapping[str, Tensor]) -> Tensor:
        """Make positions of the sites' own values, ``batch_shape + site shape`` each."""
        flat = []
        for name, shape in self.sites.items():
            value = self._unconstrain(name, samples[name])
            flat.append(value.reshape(*value.shape[: value.dim() - len(shape)], -1))
        return torch.cat(flat, -1)

    def _unconstrain(self, name: str, value: Tensor) -> Tensor:
        return value

    def unpack(self, positions: Tensor) -> dict[str, Tensor]:
        """Cut positions into unconstrained values, ``batch_shape + site shape`` each."""
        parts = positions.split([math.prod(shape) for shape in self.sites.values()], -1)
        sites = zip(self.sites.items(), parts, strict=True)
        return {name: part.reshape((*part.shape[:-1], *shape)) for (name, shape), part in sites}


class EnergyTarget(Target):
    """A batched energy of one field, the site ``x``, in physical space.

    Args:
        energy: a LatticePotential, or a differentiable callable of a field ``(chains,) + shape`` to
            nats of shape ``(chains,)``.
        shape: of the field; None takes the potential's.
        dtype: of positions; torch's default if None.
        device: of positions; the potential's or torch's default if None.

    Raises:
        ValueError: if there is no shape, or two fields, on which an energy is tried, have other
            energies one by one; later, if the energy has another shape than ``(chains,)``.
    """

    def __init__(
        self,
        energy: LatticePotential | Callable[[Tensor], Tensor],
        shape: tuple[int, ...] | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        own_shape = shape
        self._energy = energy.energy if isinstance(energy, LatticePotential) else energy
        if isinstance(energy, LatticePotential):
            self.lattice_potential, own_shape = energy, energy.shape
            device = getattr(energy, "device", None) if device is None else device
        if own_shape is None or (shape is not None and tuple(shape) != tuple(own_shape)):
            accepted = "the lattice shape of the field that the energy takes"
            raise ValueError(f"shape is {shape}; accepted: {own_shape or accepted}")
        self.shape = check_shape(own_shape, most=MAX_DIM + 1)  # of a vector field as well
        self.sites = self.lattices = {"x": self.shape}
        empty = torch.empty(0, dtype=dtype, device=device)
        self.dtype, self.device = empty.dtype, empty.device
        with numbers_may_fail():
            if isinstance(energy, LatticePotential):
                energy.try_alone(empty)
            else:
                check_separate(self._energy, trial_pair(self.shape, empty), "energy")

    def _energy_and_grad_of(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        if self.lattice_potential is not None and self.flow is None:
            x = positions.reshape(-1, *self.shape)
            energy, gradient = self.lattice_potential.energy_and_gradient(x)
            return self._checked(energy, len(positions)), gradient.reshape(positions.shape)
        return super()._energy_and_grad_of(positions)

    def physical(self, positions: Tensor) -> dict[str, Tensor]:
        return self.unpack(positions)

    def initial(self, chains: int, generator: torch.Generator, start: Any = None) -> Tensor:
        """Standard normals, a lattice model's masked prior."""
        if start == "uniform":
            return self.uniform(chains, generator)
        if callable(start) or start == "flow":
            raise ValueError(
                f"initial_params is {start!r}; accepted for an energy: 'prior', 'uniform', None, a "
                "tensor for each site, in physical space {site: flow(z)}; init_to_... is for models"
            )
        return self.from_base(chains, generator, NORMAL)

    def _source(self) -> tuple[Any, ...]:
        return self._energy, id(self.flow), self.base, self.shape, self.dtype, self.device

    def _evaluate(self, positions: Tensor) -> Tensor:
        return self._energies(positions.reshape(-1, *self.shape))

    def _energies(self, x: Tensor) -> Tensor:
        return self._checked(self._energy(copied(x)), len(x))

    def _checked(self, energy: Tensor, chains: int) -> Tensor:
        if not isinstance(energy, Tensor) or tuple(energy.shape) != (chains,):
            seen = tuple(energy.shape) if isinstance(energy, Tensor) else type(energy).__name__
            raise ValueError(
                f"energy returned {seen} for {chains} chains; accepted: shape ({chains},), "
                "one number per chain (a sum over chains makes them one chain in a product space)"
            )
        return energy.double()


class LatentTarget(EnergyTarget):
    r"""A batched energy of one field, in the latent space of a flow (paper Eq. 6).

    Its energy is :math:`U(z) = E(g(z)) - \ln|\det \partial g/\partial z|`. Positions, the site
    ``x_latent``, are z, or standard normals u with ``z = flow.base.from_normal(u)``, whose slope
    then enters as well.

    Args:
        energy, shape: as for :class:`EnergyTarget`.
        flow: ``x = flow(z)``, of the field's shape; positions are in its dtype and on its device.
        from_normal: as of :class:`~pyro_neuralrg.infer.FlowReparam`.

    Raises:
        ValueError: if the flow's shape is not the field's.
    """

    flow: TransformModule

    def __init__(
        self,
        energy: LatticePotential | Callable[[Tensor], Tensor],
        flow: TransformModule,
        shape: tuple[int, ...] | None = None,
        *,
        from_normal: bool = False,
    ) -> None:
        check_flow(flow)
        dtype, device = flow_dtype_and_device(flow)
        super().__init__(energy, shape, dtype=dtype, device=device)
        flow_shape = tuple(getattr(flow, "shape", self.shape))
        if flow_shape != self.shape or flow.domain.event_dim > len(self.shape):
            raise ValueError(
                f"flow has shape {flow_shape}, the field {self.shape}; accepted: equal ones"
            )
        self.flow = flow
        self.base = NORMAL if from_normal else base_of(flow)
        self._map = base_of(flow) if from_normal else NORMAL  # from positions to latents
        self.sites = {"x_latent": self.shape}
        self.flow_sites = {"x_latent": ("x", flow)}

    def physical(self, positions: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            z = self._latents(positions)[0]
            x = forward_and_ladj(self.flow, z, len(self.shape))[0]
        return {"x": x.reshape(*positions.shape[:-1], *self.shape)}

    def latent(self, positions: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            z = self._latents(positions)[0]
        return {"x_latent": z.reshape(*positions.shape[:-1], *self.shape)}

    def initial(self, chains: int, generator: torch.Generator, start: Any = None) -> Tensor:
        """Draws of the flow; of the prior, standard normals in physical space."""
        if start == "prior":
            x = super().initial(chains, generator).reshape(-1, *self.shape)
            return self.pack({"x": x}, chains)
        if start not in (None, "flow"):
            return super().initial(chains, generator, start)
        return self.from_base(chains, generator)

    def modules(self) -> list[torch.nn.Module]:
        return [self.flow]

    def _evaluate(self, positions: Tensor) -> Tensor:
        z, slope = self._latents(positions)
        x, ladj = forward_and_ladj(self.flow, z, len(self.shape))
        return self._energies(x) - (ladj + slope).double()

    def _latents(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """z of positions, and ln |det dz/du|."""
        return self._map.from_normal(positions.reshape(-1, *self.shape), len(self.shape))

    def _unconstrain(self, name: str, value: Tensor) -> Tensor:
        return self._map.to_normal(value, len(self.shape))[0]


def concatenated(parts: Sequence[Any]) -> Any:
    """Tensors, tuples of tensors or tensors by name, joined along the first axis."""
    if isinstance(parts[0], dict):
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if isinstance(parts[0], tuple):
        return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))
    return torch.cat(list(parts))


def energy_and_gradient(
    evaluate: Callable[[Tensor], Tensor], positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Energies of positions by a differentiable function, and their gradients."""
    with torch.enable_grad():
        leaf = positions.detach().requires_grad_()
        energy = evaluate(leaf)
        if not energy.requires_grad:
            raise ValueError(
                "energy returned a tensor that does not depend on the field differentiably; "
                "accepted: one that torch.autograd can differentiate (RandomWalkMetropolis needs "
                "no gradient)"
            )
        (gradient,) = torch.autograd.grad(energy.sum(), leaf, materialize_grads=True)
    return energy.detach(), gradient


@contextmanager
def frozen(modules: list[torch.nn.Module]) -> Iterator[None]:
    """Keep the modules' parameters out of autograd meanwhile."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
