# SPDX-License-Identifier: Apache-2.0
"""Any Pyro model as a target, and the choice of target for whatever a kernel is given."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any, TypeAlias

import pyro
import torch
from pyro import poutine
from pyro.distributions import ImproperUniform
from pyro.distributions.torch_transform import TransformModule
from pyro.infer.autoguide import AutoContinuous
from pyro.infer.autoguide.initialization import InitMessenger, init_to_uniform
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor
from torch.distributions import biject_to

from pyro_neuralrg.arguments import a_kind, copied, on_copies, see
from pyro_neuralrg.files.format import one_line
from pyro_neuralrg.infer.log_joint import UnconstrainedModel
from pyro_neuralrg.infer.model_sites import (
    ImproperDraws,
    aside,
    init_where_improper,
    innermost,
    inspect_sites,
    is_function,
)
from pyro_neuralrg.infer.pyro_internals import (
    check_guide_of,
    check_no_subsampling,
    check_not_enumerated,
    entries_of_sites,
    guide_shapes,
    is_numerical,
    reparameterisations,
    retried,
)
from pyro_neuralrg.infer.reparam import FlowReparam
from pyro_neuralrg.mcmc.model_parts import Part, part_of
from pyro_neuralrg.mcmc.target import EnergyTarget, LatentTarget, Target, energy_and_gradient
from pyro_neuralrg.mcmc.tracing import Traced
from pyro_neuralrg.potentials.base import LatticePotential
from pyro_neuralrg.runtime.processes import random_state_kept
from pyro_neuralrg.transforms.base import LatticeTransform, forward_and_ladj

TRIALS = 10
"""Pairs of points at which a model is tried, until its numbers allow to tell anything."""

TargetLike: TypeAlias = Target | LatticePotential | Callable[..., Any]


class ModelTarget(Target):
    """A Pyro model, vectorised over chains by ``torch.func.vmap``.

    Constrained sites are sampled unconstrained, as by Pyro's HMC. A model that ``vmap`` cannot take
    (data-dependent branches, in-place writes through masks as in Pyro's spline transforms) is
    evaluated chain after chain, with a warning. Argument validation is off inside the evaluations
    only. Numbers that the program reads from elsewhere are to stay as they are once it is set up,
    for its operations are recorded. Draws in the latent space of an autoguide, by Pyro's
    ``NeuTraReparam``, come back as the model's own sites, beside the latents. Of data with
    ``obs_mask`` the merged site is among them; ``NAME_unobserved`` is a standard normal,
    unconstrained, where they are observed.

    Args:
        model: a Pyro program without data subsampling.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> target = ModelTarget(lambda: pyro.sample("tau", dist.LogNormal(0.0, 1.0))).setup()
        >>> target.energy(torch.zeros(3, 1)).shape
        torch.Size([3])
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model
        self.sites, self.lattices = {}, {}
        self._parts: dict[str, Part] = {}  # by site
        self._joint: Any = None
        self._potential_fn: Any = None
        self._computed: list[str] = []  # sites that are functions of the others
        self._args: tuple[Any, ...] = ()
        self._kwargs: dict[str, Any] = {}
        self._vectorised = True
        self._transport: tuple[Any, ModelTarget, Tensor] | None = None
        self._traced: Traced[tuple[Tensor, Tensor]] | None = None
        self._traced_energy: Traced[tuple[Tensor]] | None = None

    def setup(self, *args: Any, **kwargs: Any) -> ModelTarget:
        """Run the model a few times with its arguments to see its sites.

        Raises:
            ValueError: naming the site and a remedy, if the sites are not the same in each run, a
                latent is a point, an angle on the real line or not continuous, or data are NaN.
        """
        self._check_arguments(args, kwargs)
        target = ModelTarget(self.model).in_batches(self.chain_batch_size)
        target._args, target._kwargs = args, kwargs
        program = partial(on_copies(self.model), *args, **kwargs)
        trace = inspect_sites(program)
        check_no_subsampling(trace)
        target._joint = UnconstrainedModel(program, trace)
        target._read_sites(trace)
        if target._joint.discrete:
            target._potential_fn = target._enumerated(trace)
        else:
            target._potential_fn = target._joint.energy
            known = target.sites.keys() | set(target._own_sites)
            nodes = {x: node for x, node in trace.nodes.items() if node["type"] == "sample"}
            target._computed = [x for x in nodes if x not in known and is_function(nodes[x])]
        target._transport = target._transport_of_all()
        if target._transport is None:
            target._try_vmap()
        has_flow = any(part.module for part in target._parts.values())
        if target._vectorised and not has_flow and not target._joint.discrete:
            target._traced = Traced(partial(energy_and_gradient, target._evaluate))
            target._traced_energy = Traced(lambda positions: (target._evaluate(positions),))
        return target

    @property
    def is_transported(self) -> bool:
        """Report whether all of a position is latents of flows or of a guide."""
        return bool(self._parts) and all(part.module for part in self._parts.values())

    def _enumerated(self, plain: Any) -> Callable[[dict[str, Tensor]], Tensor]:
        """Pyro's potential_fn, which sums over discrete sites."""
        try:
            with random_state_kept(), poutine.block():
                _, potential_fn, _, trace = initialize_model(
                    self._joint.program,
                    init_strategy=init_where_improper(init_to_uniform),
                    initial_params={},
                )
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            if is_numerical(error) or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"model fails where all values of its discrete sites {list(self._joint.discrete)} "
                f"are tried at once, to sum over them: {one_line(error)}; accepted: a program "
                "without branches that takes them along a new dimension in front, such as "
                "site[..., None, None] beside a field of two dimensions; or the sites summed out "
                f"by hand{see('error-discrete-latent')}"
            ) from error
        check_not_enumerated(self.sites, trace, plain, self._joint.discrete)
        return potential_fn

    def _check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            signature = inspect.signature(self.model)
        except (TypeError, ValueError):  # not known, so its own error has to do
            return
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(
                f"the arguments of run(), or model_args, do not fit the model {signature}: "
                f"{error}; accepted: the model's own (a batched energy is no model: give its "
                "kernel shape=..., or anneal() an EnergyTarget)"
            ) from None

    def _source(self) -> tuple[Any, ...]:
        return self.model, self._args, self._kwargs

    def _read_sites(self, trace: Any) -> None:
        transforms = self._joint.transforms
        values = {name: f(trace.nodes[name]["value"]) for name, f in transforms.items()}
        if not values:
            raise ValueError("model has no continuous latent site; accepted: at least one")
        self.sites = {name: tuple(value.shape) for name, value in values.items()}
        example = next(iter(values.values()))
        self.dtype, self.device = example.dtype, example.device
        self._parts = {name: part_of(self.model, name, trace) for name in transforms}
        for part in self._parts.values():
            self.lattices |= part.lattices
        self.flow_sites = {
            name: (part.sites[0], part.flow)
            for name, part in self._parts.items()
            if part.flow is not None and part.reparam is not None
        }
        if len(self._parts) == 1:
            self.flow, self.base = part.flow, part.base

    def _transport_of_all(self) -> tuple[Any, ModelTarget, Tensor] | None:
        """Flow of the guide, model behind it and the order of its entries in the guide's vector."""
        inner = next((inner for _, inner in reparameterisations(self.model)), None)
        guide: Any = next(iter(self._parts.values())).module
        if inner is None or len(self._parts) != 1 or not isinstance(guide, AutoContinuous):
            return None
        behind, shapes = ModelTarget(inner).setup(*self._args, **self._kwargs), guide_shapes(guide)
        check_guide_of(behind.sites, guide)
        entries = entries_of_sites(shapes)
        order = torch.cat([entries[name] for name in behind.sites])
        return guide.get_transform(), behind, order.to(self.device)

    # Energies -------------------------------------------------------------------------------------

    def _evaluate(self, positions: Tensor) -> Tensor:
        r"""Energies with a graph; behind the flow g of a guide U(z) = E(g(z)) - ln|det dg/dz|.

        Autograd is to stand outside of vmap: compiled couplings do not know torch.func.grad.
        """
        if not self.sites:
            raise ValueError(
                "the model has not been set up; call target = target.setup(*args) first"
            )
        if self._transport is not None:
            behind, x, ladj = self._behind(positions)
            return behind._evaluate(x) - ladj.double()
        positions = positions.clone()  # for a model that works in place
        with pyro.validation_enabled(False):
            if self._vectorised:
                values = self.unpack(positions)
                return torch.func.vmap(self._energy_at)(values, self._images(values)).double()
            energies = [self._potential_fn(self.unpack(position)) for position in positions]
        return torch.stack(energies).double()

    def _behind(self, positions: Tensor) -> tuple[ModelTarget, Tensor, Tensor]:
        """The model behind the guide's flow, its positions, and ln |det| of the flow."""
        assert self._transport is not None
        flow, behind, order = self._transport
        u, ladj = forward_and_ladj(flow, positions, 1)
        return behind, u[..., order], ladj

    def _energy_of(self, positions: Tensor) -> Tensor:
        with torch.no_grad():
            if self._transport is not None:
                behind, x, ladj = self._behind(positions)
                return behind._energy_of(x) - ladj.double()
            if self._traced_energy is None:
                return self._evaluate(positions)
            return self._traced_energy(positions)[0]

    def _energy_and_grad_of(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Behind a guide's flow by the chain rule, so that what is traced is the model alone."""
        if self._transport is not None:
            with torch.enable_grad():
                leaf = positions.detach().requires_grad_()
                behind, x, ladj = self._behind(leaf)
                energy, slope = behind._energy_and_grad_of(x)
                ends = [(x, slope), (ladj, -torch.ones_like(ladj))]
                known, slopes = zip(*(end for end in ends if end[0].requires_grad), strict=True)
                (gradient,) = torch.autograd.grad(known, leaf, slopes, materialize_grads=True)
            return energy - ladj.detach().double(), gradient
        if self._traced is None:
            return super()._energy_and_grad_of(positions)
        return self._traced(positions)

    def _images(self, values: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Fields and ln |det| of flows, which take a batch faster as it is than within vmap."""
        latents = {x: part for x, part in self._parts.items() if part.reparam is not None}
        return {
            x: forward_and_ladj(part.flow, self._joint.transforms[x].inv(values[x]), len(shape))
            for x, part in latents.items()
            for shape in part.lattices.values()
        }

    def _energy_at(
        self, values: dict[str, Tensor], images: Mapping[str, tuple[Tensor, Tensor]]
    ) -> Tensor:
        with ExitStack() as known:
            for name, image in images.items():
                part: Any = self._parts[name]
                known.enter_context(part.reparam.image(*part.sites, image))
            return self._potential_fn(values)

    def _try_vmap(self) -> None:
        """Find out, at two points, whether vmap takes the model; fall back with a warning."""
        points = torch.zeros(2, self.dim, dtype=self.dtype, device=self.device)
        for seed in range(TRIALS):
            try:
                self._energy_and_grad_of(points)
                return
            except Exception as error:  # whatever vmap or the model raises inside vmap
                reason = error
            if not is_numerical(reason):
                break
            points = self.uniform(2, torch.Generator(self.device).manual_seed(seed))
        else:
            return  # nothing is known; the starts will tell
        self._vectorised = False
        first, second = (self.energy_and_grad(points)[0] for _ in range(2))  # or the model's error
        if not torch.allclose(first, second, equal_nan=True):
            raise ValueError(
                "model has a random density: two evaluations at one point differ; accepted: a "
                "function of its sites (modules with dropout in eval mode, no random numbers "
                "outside of sample statements)"
            )
        warnings.warn(
            "the model cannot be vectorised by torch.func.vmap; its chains are evaluated one "
            "after another, which is slow; the reason: "
            + f"{type(reason).__name__}: {reason}".splitlines()[0],
            stacklevel=5,  # the caller of run()
        )

    # Sites ----------------------------------------------------------------------------------------

    def physical(self, positions: Tensor) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        with torch.no_grad(), pyro.validation_enabled(False):
            for name, u in self.unpack(positions).items():
                values |= self._parts[name].values(self._joint.transforms[name].inv(u))
        return values

    def latent(self, positions: Tensor) -> dict[str, Tensor]:
        names = [name for name, part in self._parts.items() if part.module]
        values, transforms = self.unpack(positions), self._joint.transforms
        with torch.no_grad():
            return {name: transforms[name].inv(values[name]) for name in names}

    def computed(self, positions: Tensor) -> dict[str, Tensor]:
        """See :class:`Target`; none of a model that sums over discrete sites."""
        if self._transport is not None:
            with torch.no_grad():
                behind, x, _ = self._behind(positions)
                return behind.computed(x)
        if not self._computed:
            return {}

        def of_one(position: Tensor) -> dict[str, Tensor]:
            return self._joint.functions(self.unpack(position), self._computed)

        with aside(), torch.no_grad():
            if self._vectorised:
                return torch.func.vmap(of_one, randomness="different")(positions)
            found = [of_one(position) for position in positions]
        return {name: torch.stack([one[name] for one in found]) for name in self._computed}

    def pack(self, params: Mapping[str, Tensor], chains: int) -> Tensor:
        """See :class:`Target`; for a shared latent also of all the sites behind it."""
        given = dict(params)
        for name, part in self._parts.items():
            guide: Any = part.module
            of_guide = isinstance(guide, AutoContinuous) and name not in given
            if of_guide and given.keys() >= set(part.sites):
                columns = [torch.as_tensor(given.pop(x)).reshape(chains, -1) for x in part.sites]
                values = torch.cat(columns, -1).to(dtype=self.dtype, device=self.device)
                with torch.no_grad():
                    given[name] = guide.get_transform().inv(values)
        return super().pack(given, chains)

    def _unconstrain(self, name: str, value: Tensor) -> Tensor:
        return self._joint.transforms[name](value)

    # Starts ---------------------------------------------------------------------------------------

    @property
    def start_flow(self) -> TransformModule | None:
        if self.flow is not None or not self.is_transported:
            return self.flow
        return _Identity(self.event_shape)  # positions are latents, of several flows perhaps

    @property
    def starts_uniformly(self) -> bool:  # type: ignore[override]
        """Report whether no site is a latent of a flow, which has draws to start from."""
        return not any(part.module for part in self._parts.values())

    def initial(self, chains: int, generator: torch.Generator, start: Any = None) -> Tensor:
        """Draws of the model, of the prior also at the sites behind flows, or uniform positions."""
        if start == "uniform" or (start is None and self.starts_uniformly):
            return self.uniform(chains, generator)
        if start == "flow" and self.starts_uniformly:
            raise ValueError("initial_params is 'flow'; accepted for this model: 'prior'")
        one_start = self._prior_values if start == "prior" else self._own_values
        begun = InitMessenger(start) if callable(start) else nullcontext()
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        with random_state_kept(), poutine.block(), torch.no_grad(), begun:
            torch.manual_seed(seed)
            starts = [retried(one_start) for _ in range(chains)]
        values = {name: torch.stack([one[name] for one in starts]) for name in starts[0]}
        return self.pack(values, chains)

    def unconstrained(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See :class:`Target`; fields behind flows as they are, without what else a guide draws."""
        with random_state_kept(), poutine.block(), torch.no_grad():
            nodes = self._run(self._without_reparams)
        fields = {field for field, _ in self.flow_sites.values()}
        known = self.sites.keys() | set(self._own_sites)
        found = {name: values[name] for name in values if name in known}
        for name in found.keys() & nodes.keys() - fields:
            value, support = torch.as_tensor(found[name]), nodes[name]["fn"].support
            shape = nodes[name]["value"].shape
            if [n for n in value.shape[1:] if n > 1] != [n for n in shape if n > 1]:
                raise ValueError(
                    f"initial_params[{name!r}] has values of shape {tuple(value.shape[1:])}; "
                    f"accepted: {tuple(shape)}"
                )
            value = value.reshape(-1, *shape)  # a guide's draws have dimensions for plates
            if not bool(support.check(value).all()):
                raise ValueError(
                    f"initial_params[{name!r}] has values that are NaN or outside of the site's "
                    f"support; accepted: values within {support}"
                )
            found[name] = biject_to(support).inv(value)
        return found

    @property
    def _own_sites(self) -> list[str]:
        """The model's own sites that the position stands for."""
        return [site for part in self._parts.values() for site in part.sites]

    @property
    def _without_reparams(self) -> Any:
        """The model as it is written."""
        return [self.model, *(fn for _, fn in reparameterisations(self.model))][-1]

    def _run(self, model: Any) -> Any:
        """Sites of a run, with draws of the prior."""
        args, kwargs = copied(self._args), copied(self._kwargs)
        return poutine.trace(ImproperDraws()(model)).get_trace(*args, **kwargs).nodes

    def _own_values(self) -> dict[str, Tensor]:
        """What :meth:`pack` takes, of one run of the model."""
        nodes, transforms = self._run(self.model), self._joint.transforms
        values = {name: nodes[name]["value"] for name in self.sites}
        return {x: v if x in self.flow_sites else transforms[x](v) for x, v in values.items()}

    def _prior_values(self) -> dict[str, Tensor]:
        """The same of a run of the model without its reparameterisations."""
        nodes, found = self._run(self._without_reparams), {}
        for name in self._own_sites:
            if name not in nodes or nodes[name]["is_observed"]:
                raise ValueError(
                    f"initial_params is 'prior', and site {name!r} has none that could be drawn, "
                    "being reparameterised within the model or by other means than a flow; "
                    "accepted for this model: None, 'flow', or unconstrained values"
                )
            if isinstance(innermost(nodes[name]["fn"]), ImproperUniform):
                raise ValueError(
                    f"initial_params is 'prior', and site {name!r} has an improper one, without "
                    "draws; accepted for this model: None, or a start for each chain"
                )
            found[name] = biject_to(nodes[name]["fn"].support).inv(nodes[name]["value"])
        return found

    def modules(self) -> list[torch.nn.Module]:
        modules = [*(part.module for part in self._parts.values()), self.model]
        return [module for module in modules if isinstance(module, torch.nn.Module)]


class _Identity(LatticeTransform):
    """The flow of latents that are a position as they are."""

    def forward(self, h: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return h, h.new_zeros(h.shape[-1])

    inverse = forward


def as_target(
    target: TargetLike,
    *,
    shape: tuple[int, ...] | None = None,
    flow: TransformModule | None = None,
) -> Target:
    """Return the fastest target that samples what is given.

    Args:
        target: a :class:`Target`; a LatticePotential; a batched energy, with ``shape``; or a Pyro
            model. The model (or ``potential_fn``) of a LatticePotential, also reparameterised by
            ``poutine.reparam(potential.model, {"x": FlowReparam(flow)})``, is evaluated directly.
        shape: lattice shape of a plain batched energy.
        flow: sample the potential or energy in this flow's latent space.

    Raises:
        TypeError: if ``target`` is anything else.
        ValueError: if shapes do not fit, or ``flow`` is given for a model.
    """
    if isinstance(target, Target):
        if shape is not None or flow is not None:
            raise ValueError("shape and flow are for energies; a Target has its own")
        return target
    energy, reparam = (target, None) if shape is not None else _recognise(target)
    sampled = isinstance(energy, LatticePotential) or callable(energy)
    if not sampled or isinstance(energy, TransformModule):
        raise TypeError(
            f"target is {a_kind(target)}; accepted: a LatticePotential, a Pyro model, a "
            "Target, or a batched energy with shape=..."
        )
    if shape is None and not isinstance(energy, LatticePotential):
        if flow is not None:
            raise ValueError(
                "flow is for a potential or energy; for a model use "
                "poutine.reparam(model, {site: FlowReparam(flow)})"
            )
        return ModelTarget(energy)
    if reparam is not None:
        if flow not in (None, reparam.flow):
            raise ValueError(
                "flow is given twice: by poutine.reparam and by flow=...; accepted: once"
            )
        return LatentTarget(energy, reparam.flow, from_normal=reparam.from_normal)
    return EnergyTarget(energy, shape) if flow is None else LatentTarget(energy, flow, shape)


def _recognise(model: Any) -> tuple[Any, FlowReparam | None]:
    """The potential behind its own ``model`` and how that is reparameterised; else as it is."""
    layers = list(reparameterisations(model))
    inner = layers[-1][1] if layers else model
    owner = getattr(inner, "__self__", None)
    own = (LatticePotential.model, LatticePotential.potential_fn)
    if not isinstance(owner, LatticePotential) or inner.__func__ not in own:
        return model, None
    configs = [config for config, _ in layers]
    if not configs:
        return owner, None
    reparam = configs[0].get("x") if isinstance(configs[0], dict) else None
    is_plain = type(reparam) is FlowReparam and len(configs) == len(configs[0]) == 1
    return (owner, reparam) if is_plain else (model, None)
