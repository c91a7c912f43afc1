# SPDX-License-Identifier: Apache-2.0
"""A Pyro autoguide whose fields come from a hierarchical flow."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.torch_transform import TransformModule
from pyro.infer.autoguide.guides import AutoContinuous
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor, nn
from torch.distributions import biject_to

from pyro_neuralrg.arguments import check_integer, check_number, check_type, copied, on_copies, see
from pyro_neuralrg.distributions.flow import FlowDistribution, base_distribution
from pyro_neuralrg.infer.autoguide.sites import (
    check_support,
    format_sites,
    order_latents,
    site_shapes,
)
from pyro_neuralrg.infer.autoguide.start import posterior_start
from pyro_neuralrg.infer.autoguide.transform import (
    FieldFlow,
    GaussianFrame,
    GlobalsFlow,
    LatentFlow,
    SharedAmongDraws,
    check_flow_options,
    flow_options,
)
from pyro_neuralrg.infer.guides import with_tensors
from pyro_neuralrg.infer.model_sites import init_where_improper, inspect_sites
from pyro_neuralrg.infer.pyro_internals import (
    is_being_reparameterised,
    is_in_program,
    register_parameters,
    take_loaded,
)
from pyro_neuralrg.lattice import check_shape

QUANTILE_DRAWS = 1000
"""Draws of the posterior behind :meth:`AutoHierarchicalFlow.median` and ``quantiles``."""


class AutoHierarchicalFlow(AutoContinuous):
    r"""A guide for a Pyro model with one or more fields on a lattice.

    All continuous latent sites, unconstrained, are one vector :math:`u = g(z)` of standard normals
    z, in the model's order. The fields come from one
    :func:`~pyro_neuralrg.transforms.hierarchical_flow` (several of them as a last axis of its
    lattice, or within the last of three axes), conditioned on the latents of all other sites, the
    globals, which have a small flow of their own.

    All of it stands in a frame, an affine map that is not trained: by default the Gaussian nearest
    to the posterior, found in seconds
    (:func:`~pyro_neuralrg.infer.autoguide.gaussians.nearest_gaussian`), with a covariance matrix up
    to 2048 unknowns, beyond with widths of sites and of the fields' modes. With few globals (one
    beside 830 entries of fields, three beside 190, eight beside 33) it is bent: these have their
    marginal density by Laplace's approximation of the fields, whose places and widths follow them
    (:func:`~pyro_neuralrg.infer.autoguide.curved.curved_gaussian`). From there on a step of Adam at
    a rate of 1e-2 moves draws by 0.04 standard deviations at most: plain SVI is safe. 800 steps of
    16 particles end above where they began (of ten field models one, a disease map, 0.06 nats
    below); :func:`~pyro_neuralrg.fit`, which lowers its rate, ends nearer.
    With ``init_scale``, where no Gaussian is found and where data are subsampled (both with a
    warning), the guide begins at ``init_loc_fn``, as Pyro's do, at zeros of improper priors.

    Most models need no options: each site has a skewness and a weight of its tails, the modes of
    the fields have widths that depend on the globals, and two small couplings a block see the
    neighbours. On a Cox process of many points ``bijector=Neighbour(layers=4, hidden=(16,),
    num_tanh=2)`` gained 0.13 nats, on two smooth maps more of them gained at most 0.01
    (``python -m tests.benchmarks.guides --options``). ``boundary="periodic"`` is for fields on a
    torus, ``odd=True`` for symmetric posteriors.

    ``SVI``, ``Predictive``, ``NeuTraReparam(guide)`` and ``fit(model, guide, ...)`` work with it.
    Its parameters exist at once where the model takes no arguments (or has a default other than
    None for each), or with ``prototype_args``; else from the first call, or :meth:`initialize`, on.
    They are the guide's own: see :class:`~pyro_neuralrg.infer.FlowGuide`, also for
    ``pyro.get_param_store().save`` and ``load``. A file of ``torch.save(guide.state_dict(), path)``
    is read by ``guide.load_state_dict(torch.load(path))`` into one of the same model and options.

    Args:
        model: a Pyro model with static structure and without discrete latent sites.
        field: name of the field, or None to look for fields: sites of two or three dimensions
            (plates and ``.to_event`` alike), or if there is none the longest of one. A model
            without any has globals only.
        fields: names of several fields of one shape, instead of ``field``; [] for globals only.
        lattice: sides of the fields, where their sites have another shape: ``(20, 30)`` of a map
            that is one ``MultivariateNormal`` of 600 entries, row by row.
        components: numbers at each site of the lattice, the last axis of each field: 3 of fields
            of vectors of shape ``(8, 8, 3)``, which otherwise are on a lattice of three sides. Each
            component is as a field of its own; without names all sites of such a last axis are
            fields, and none that lacks it.
        init_loc_fn: Pyro's initialisation of each site.
        init_scale: standard deviation at the start, in unconstrained space; None: that of the
            Gaussian nearest to the posterior.
        globals_flow: a callable ``dim -> TransformModule`` of event shape ``(dim,)`` for the
            globals, such as Pyro's ``spline_autoregressive``.
        prototype_args, prototype_kwargs: arguments of the model to find its sites with.
        **options: of :func:`~pyro_neuralrg.transforms.hierarchical_flow` without shape and dtype,
            and ``features`` of the conditional one. With ``odd=True`` the density of the fields is
            symmetric about where it begins.

    Attributes:
        fields: names of the fields, in the model's order, once they are known.
        shape: the lattice shape, or None.

    Raises:
        ValueError: naming the sites seen, if a field is not there or observed, if fields differ in
            shape, if a latent is discrete, subsampled, a point or an angle on the real line, or has
            values outside of what it draws, or if sites or supports are not the same in each run.
        TypeError: if an option is unknown.

    References:
        Li, Wang, PRL 121, 260601 (2018); Kucukelbir et al., Automatic Differentiation Variational
        Inference, JMLR 18 (2017); Hoffman et al., NeuTra-lizing Bad Geometry (2019).

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> def model():
        ...     width = pyro.sample("width", dist.LogNormal(0.0, 1.0))
        ...     prior = dist.Normal(torch.zeros(4, 4), width[..., None, None])
        ...     x = pyro.sample("x", prior.to_event(2))
        ...     pyro.sample("y", dist.Normal(x, 1.0).to_event(2), obs=torch.ones(4, 4))
        >>> guide = AutoHierarchicalFlow(model, field="x")
        >>> guide()["x"].shape, guide.get_posterior().event_shape
        (torch.Size([4, 4]), torch.Size([17]))
    """

    def __init__(
        self,
        model: Callable[..., Any],
        field: str | None = None,
        *,
        fields: Sequence[str] | None = None,
        lattice: Sequence[int] | None = None,
        components: int = 1,
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float | None = None,
        globals_flow: Callable[[int], TransformModule] | None = None,
        prototype_args: Sequence[Any] = (),
        prototype_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        check_type("init_loc_fn", init_loc_fn, Callable, "a function")
        check_type("globals_flow", globals_flow, Callable | None, "a function")
        super().__init__(model, init_loc_fn=init_where_improper(init_loc_fn))
        self.prototype_trace: Any = None
        check_flow_options(options)
        if init_scale is not None:
            init_scale = check_number("init_scale", init_scale, "a positive number", above=0)
        self.fields: tuple[str, ...] = ()
        self.shape: tuple[int, ...] | None = None
        self.plates: dict[str, Any] = {}
        self.transform: nn.Module | None = None
        # for the flow, until the model's sites are known
        sides = None if lattice is None else check_shape(lattice, "lattice")
        components = check_integer("components", components, 1)
        wanted = _names(field, fields), sides, components
        self._wishes: Any = wanted, init_scale, globals_flow, options
        self._prior: Any = (model,)  # not a submodule, and without the initialisation
        if prototype_args or prototype_kwargs or _takes_nothing(model):
            self.initialize(*prototype_args, **(prototype_kwargs or {}))

    # The contract of AutoContinuous

    def initialize(self, *args: Any, **kwargs: Any) -> AutoHierarchicalFlow:
        """Look at the model, called with these arguments, create the parameters, return the guide.

        Raises a ValueError as the class does; also if the sites are others than they were.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        else:
            self._check_structure(args, kwargs)
        return self

    def get_base_dist(self) -> Any:
        """Standard normals, as many as there are unconstrained latents."""
        flow = self._known()
        return base_distribution(flow, flow.event_shape)

    def get_transform(self, *args: Any, **kwargs: Any) -> Any:
        """The change of variables u = g(z); the arguments are not used.

        Within ``poutine.reparam`` draws of the first latent site share the log-determinant.
        """
        flow = self._known()
        if not is_being_reparameterised():
            return flow
        site = next(iter(self.prototype_trace.iter_stochastic_nodes()))[1]
        draws = site["value"].shape[: site["value"].dim() - site["fn"].event_dim].numel()
        return flow if draws == 1 else SharedAmongDraws(flow, draws)

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        """The distribution of all unconstrained latents; the arguments are not used."""
        flow = self._known()
        if is_in_program(self):
            register_parameters(self, "transform")
        return FlowDistribution(flow, flow.event_shape)

    @torch.no_grad()
    def quantiles(
        self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Quantiles of each entry of each latent site, from 1000 draws of the posterior.

        By site, ``(len(quantiles),) + site shape``, taken in unconstrained space, as by Pyro.
        """
        draws = self.get_posterior().sample((QUANTILE_DRAWS,))
        levels = torch.as_tensor(quantiles, dtype=draws.dtype, device=draws.device)
        # by parts, since torch.quantile takes no more than sixteen million numbers
        latents = torch.cat([torch.quantile(part, levels, 0) for part in draws.split(4096, -1)], -1)
        shapes, found = self._unconstrained_shapes, {}
        parts = latents.split([shape.numel() for shape in shapes.values()], -1)
        for (name, shape), part in zip(shapes.items(), parts, strict=True):
            support = self.prototype_trace.nodes[name]["fn"].support
            found[name] = biject_to(support)(part.reshape(-1, *shape))
        return found

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The median of each entry of each latent site, from 1000 draws of the posterior."""
        return {name: value[0] for name, value in self.quantiles([0.5]).items()}

    def clear_cache(self) -> None:
        """Forget the last evaluated pair of the flow."""
        if self.prototype_trace is not None:
            self._known().clear_cache()

    # What the model is, and what flow it gets

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        try:
            with torch.no_grad():  # what has a graph cannot be copied
                seen = self._look_at_model(args, kwargs)
                self._build(args, kwargs, seen)
        except Exception:
            self.prototype_trace = None
            raise
        self._wishes = None
        with poutine.block():
            self._create_plates(*args, **kwargs)

    def _look_at_model(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """AutoContinuous's look, and what it does not notice; a trace of the model's own draws."""
        try:
            super()._setup_prototype(*copied(args), **copied(kwargs))
        except (NotImplementedError, RuntimeError, ValueError) as error:
            if self.prototype_trace is None:  # an error of the model's own
                raise
            raise ValueError(
                f"model has no latents that this guide can draw: {error}; accepted: continuous "
                f"latent sites in vectorised plates; {format_sites(self.prototype_trace)}"
                f"{see('error-discrete-latent')}"
            ) from error
        for node in ("_INPUT", "_RETURN"):  # data, which need not be carried along
            self.prototype_trace.remove_node(node)
        for name, site in self.prototype_trace.iter_stochastic_nodes():
            check_support(name, site["fn"])
            for frame in site["cond_indep_stack"]:
                if frame.full_size not in (None, frame.size):
                    raise ValueError(
                        f"latent site {name!r} stands in plate {frame.name!r}, which is subsampled "
                        f"({frame.size} of {frame.full_size}); accepted: subsampled plates around "
                        f"observations only; {format_sites(self.prototype_trace)}"
                        f"{see('error-subsampled-plate')}"
                    )
        return self._check_structure(args, kwargs)

    def _check_structure(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compare the sites with those of runs with other latents, and return one of these."""
        program = functools.partial(on_copies(self._prior[0]), *args, **kwargs)
        return inspect_sites(program, site_shapes(self.prototype_trace))

    def __repr__(self) -> str:
        flow, name = self._modules.get("transform"), type(self).__name__
        if not isinstance(flow, LatentFlow):
            return f"{name}(its model has not been seen)"
        sides = " x ".join(map(str, self.shape or ()))
        fields = "".join(f"{field!r} of {sides}, " for field in self.fields)
        return f"{name}({fields}{flow.globals_dim} globals)"

    def _build(self, args: Any, kwargs: Any, seen: Any) -> None:
        """Create the flow of the model's latents, ``seen`` in a trace."""
        trace, (wanted, init_scale, own_flow, given) = self.prototype_trace, self._wishes
        latents = order_latents(trace, wanted[0], self._unconstrained_shapes, *wanted[1:])
        loc = self._init_loc()
        if not bool(loc.isfinite().all()):
            raise ValueError(
                "init_loc_fn gives values that are not finite in unconstrained space; accepted: "
                f"a start inside of the supports; {format_sites(trace)}"
            )
        options = flow_options(latents.shape, given) if latents.fields else {}
        mean = loc[latents.order]
        program = functools.partial(on_copies(self._prior[0]), *args, **kwargs)
        start = posterior_start(program, seen, mean, latents, options, init_scale)
        frame = GaussianFrame(start.mean.to(loc), start.factor.to(loc))
        globals_flow, field_flow = None, None
        if latents.globals_dim:
            globals_flow = GlobalsFlow(loc.new_zeros(latents.globals_dim), own_flow)
        if latents.fields:
            like = loc.new_zeros(latents.shape)
            sizes = latents.channels, latents.globals_dim
            field_flow = FieldFlow(like, *sizes, options, narrow=start.narrow)
            field_flow.frame.begin(start.log_modes, start.slopes, start.curve)
        self.transform = LatentFlow(latents.order, frame, globals_flow, field_flow)
        self.fields, self.shape = latents.fields, latents.lattice or None

    def _known(self) -> LatentFlow:
        """The flow, which is there once the model has been seen."""
        flow = self._modules.get("transform")  # an attribute would be registered with Pyro
        if not isinstance(flow, LatentFlow):
            raise ValueError(
                "the guide has no parameters yet, since its model takes arguments; accepted: "
                "guide.initialize(*args, **kwargs) first, or prototype_args=(...) when it is made"
                f"{see('error-guide-arguments')}"
            )
        take_loaded(self, "transform")
        return flow

    # Parameters, copies, files

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._known()
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        """``.to``, ``.double`` and the like, also of what is known of the sites."""
        super()._apply(fn, *args, **kwargs)
        if self.prototype_trace is not None:
            for _, site in self.prototype_trace.iter_stochastic_nodes():
                site["fn"], site["value"] = with_tensors(site["fn"], fn), fn(site["value"])
        return self

    def __getstate__(self) -> dict[str, Any]:
        """All but the model, which often cannot be pickled; the guide itself keeps it."""
        model, master = self._model, self.master
        state = dict(super().__getstate__())
        self._model, self.master = model, master
        return {**state, "_model": None, "_prior": None, "master": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> AutoHierarchicalFlow:
        """A copy with parameters of its own and the same model."""
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        twin._model, twin._prior = self._model, self._prior
        return twin


def _names(field: str | None, fields: Sequence[str] | None) -> tuple[str, ...] | None:
    """The names given, or None."""
    if field is not None and fields is not None:
        raise ValueError("field and fields are both given; accepted: one of them")
    check_type("field", field, str | None, "the name of a site (fields=[...] for more)")
    if isinstance(fields, str) or not all(isinstance(name, str) for name in fields or ()):
        raise TypeError(f"fields is {fields!r}; accepted: a list of names of sites")
    names = fields if field is None else (field,)
    return None if names is None else tuple(names)


def _takes_nothing(model: Callable[..., Any]) -> bool:
    """Report whether a call without arguments shows the model: a default of None awaits data."""
    try:
        program = model.forward if isinstance(model, nn.Module) else model
        parameters = inspect.signature(program).parameters.values()
    except (TypeError, ValueError):
        return False
    return all(p.default is not p.empty and p.default is not None for p in parameters)
