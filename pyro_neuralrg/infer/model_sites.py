# SPDX-License-Identifier: Apache-2.0
"""One look at a model's sites, before any inference: what chains and guides cannot take."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, ImproperUniform, TorchDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.distributions.util import sum_rightmost
from pyro.infer.autoguide.initialization import InitMessenger, init_to_uniform
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent, biject_to, constraints

from pyro_neuralrg.arguments import see
from pyro_neuralrg.infer.pyro_internals import is_being_initialised, refuse_within_plate, retried
from pyro_neuralrg.runtime.processes import random_state_kept

RUNS = 8
"""Runs with latents of the prior that must have the same sites; 99 % see both of two branches."""

Program = Callable[[], Any]
WRAPPERS = Independent, MaskedDistribution, ExpandedDistribution


def innermost(fn: Any) -> Any:
    """A distribution without its plates, masks and event dimensions."""
    while isinstance(fn, WRAPPERS):
        fn = fn.base_dist
    return fn


def base_support(fn: Any) -> Any:
    """The support of a distribution, or a constraint itself, without its event dimensions."""
    support: Any = getattr(fn, "support", fn)
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def latent_sites(trace: Any) -> dict[str, Any]:
    """The sites that are neither observed nor subsamples."""
    nodes = trace.iter_stochastic_nodes()
    return {name: site for name, site in nodes if not site_is_subsample(site)}


def is_function(site: Any) -> bool:
    """Report whether a site is a function of others, as those of ``pyro.deterministic``."""
    return site["is_observed"] and isinstance(innermost(site["fn"]), Delta)


def drawn_trace(program: Program) -> Any:
    """The trace of a run with latents of the prior.

    Improper ones, and all where the model cannot take what is drawn of its prior, are uniform
    within (-2, 2) on the unconstrained scale.
    """
    with torch.no_grad(), poutine.block():
        try:
            return poutine.trace(ImproperDraws()(program)).get_trace()
        except Exception:  # values of a wide prior that the model cannot take
            model = InitMessenger(init_where_improper(init_to_uniform))(Imputed()(program))
            return retried(lambda: poutine.trace(model).get_trace())


def init_where_improper(init_loc_fn: Callable[..., Any]) -> Callable[..., Any]:
    """Pyro's initialisation of a site, and zero, unconstrained, where that asks for a draw."""

    def init(site: Any) -> Any:
        try:
            return init_loc_fn(site)
        except NotImplementedError:
            if not isinstance(innermost(site["fn"]), ImproperUniform):
                raise
            return _improper_point(site["fn"], torch.zeros)

    return init


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """A context for trial runs: no random numbers are used up, no handler outside sees them."""
    with random_state_kept(), poutine.block(), pyro.validation_enabled(False):
        yield


class Imputed(Messenger):
    """A density for what ``pyro.sample(NAME, ..., obs_mask=...)`` draws and does not use.

    Pyro draws a value of ``NAME_unobserved`` for each datum, masks the density of those that are
    observed, and takes the others: what is drawn in vain is flat, and improper. Here it is
    a standard normal on the unconstrained scale, and discrete data have their own density.

    Args:
        kept: sites to be left as Pyro has them, such as those that a guide masks as well.
    """

    def __init__(self, kept: Collection[str] = ()) -> None:
        super().__init__()
        self.kept = kept
        self._last = ""  # the site before

    def _pyro_sample(self, msg: Any) -> None:
        name, last, fn, mask = msg["name"], self._last, msg["fn"], msg["mask"]
        self._last = name
        is_half = name == last.removesuffix("observed") + "unobserved" and name not in self.kept
        if not is_half or msg["is_observed"]:
            return
        # one value for many data is used, unless all are observed
        if isinstance(mask, Tensor) and mask.dim() <= len(fn.batch_shape):
            with contextlib.suppress(NotImplementedError):  # of a support that is refused in words
                msg["fn"] = fn if fn.has_enumerate_support else _UsedWhere(mask, fn)
                msg["mask"] = None


class _UsedWhere(TorchDistribution):
    """A distribution where ``used``, elsewhere standard normals mapped to its support."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, used: Tensor, fn: Any) -> None:
        self.used, self.fn, self.to_support = used.expand(fn.batch_shape), fn, biject_to(fn.support)
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.fn.has_rsample

    @property
    def support(self) -> Any:
        return self.fn.support

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of the distribution, where it has them, or without a gradient."""
        value = (self.fn.rsample if self.has_rsample else self.fn.sample)(torch.Size(sample_shape))
        normals = self.to_support(torch.randn_like(self.to_support.inv(value)))
        used = self.used.reshape(*self.used.shape, *(1,) * self.event_dim)
        return torch.where(used, value, normals)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """The same without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """The density of either."""
        u = self.to_support.inv(value)
        normal = -0.5 * (u.square() + math.log(2.0 * math.pi))
        normal = sum_rightmost(normal, u.dim() - value.dim() + self.event_dim)
        normal = normal - self.to_support.log_abs_det_jacobian(u, value)
        return torch.where(self.used, self.fn.log_prob(value), normal)


class ImproperDraws(Imputed):
    """Draws of what has no distribution."""

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        is_free = msg["value"] is None and not is_being_initialised()
        if is_free and isinstance(innermost(msg["fn"]), ImproperUniform):
            msg["value"] = _improper_point(msg["fn"], lambda shape: 4.0 * torch.rand(shape) - 2.0)


def _improper_point(fn: Any, unconstrained: Callable[[Any], Tensor]) -> Tensor:
    transform = biject_to(fn.support)
    return transform(unconstrained(transform.inverse_shape(fn.batch_shape + fn.event_shape)))


def inspect_sites(program: Program, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Any:
    """Run the model a few times and return a trace; ``shapes`` are those of its sites so far.

    Raises:
        ValueError: naming the site and the remedy, if sites come and go, if a support depends on
            other sites, if a latent site is a point or an angle on the real line, or if data are
            NaN where no mask hides them.
    """
    with random_state_kept():
        traces = [drawn_trace(program) for _ in range(RUNS)]
    runs = [latent_sites(trace) for trace in traces]
    if shapes is None:
        shapes = {name: tuple(site["value"].shape) for name, site in runs[0].items()}
    for sites in runs:
        refuse_change(shapes.keys() ^ sites.keys())
        for name, site in sites.items():
            before, now = shapes[name], tuple(site["value"].shape)
            if before != now:
                if before == now[len(now) - len(before) :] and site["cond_indep_stack"]:
                    refuse_within_plate(name, before, now)
                refuse_change([name], f"of shape {before} in one run and {now} in another")
    for name in shapes:
        sites_of_runs = [sites[name] for sites in runs]
        _check_support(name, sites_of_runs)
        _check_no_angle(name, sites_of_runs)
    check_data(traces)
    return traces[0]


def refuse_change(names: Iterable[str], how: str = "in some runs only") -> None:
    """Refuse a model that has these latent sites in some of its runs only, if there are any."""
    if found := sorted(names):
        raise ValueError(
            f"model has sites that come and go, {found} {how}; accepted: the same latent sites of "
            "the same shapes in each run, such as one that is always drawn and used where it is "
            "wanted: torch.where(s > 0, t, 0.0) for t drawn if s > 0"
        )


def _check_support(name: str, sites: list[Any]) -> None:
    """Refuse a point, and a support that is not the same in each run."""
    fn = sites[0]["fn"]
    if isinstance(innermost(fn), Delta):
        raise ValueError(
            f"latent site {name!r} is a Delta, a point without a density; accepted: "
            f"pyro.deterministic({name!r}, value)"
        )
    if fn.has_enumerate_support:
        return
    images = []
    for site in sites:
        try:
            transform = biject_to(site["fn"].support)
        except NotImplementedError:
            raise ValueError(
                f"latent site {name!r}, a {type(innermost(fn)).__name__}, has a support that no "
                f"map from numbers reaches, {site['fn'].support}; accepted: continuous sites (a "
                "direction by ProjectedNormalReparam, a covariance as scales and an LKJCholesky; "
                "counts summed out by hand)"
            ) from None
        images.append(transform(torch.ones_like(transform.inv(site["value"]))))
    if not all(torch.allclose(images[0], image, equal_nan=True) for image in images[1:]):
        raise ValueError(
            f"the support of latent site {name!r} depends on other sites; accepted: supports that "
            "are the same in each run; draw a site of fixed support, then shift and scale it, such "
            f"as low + (high - low) * pyro.sample({name + '_share'!r}, dist.Uniform(0.0, 1.0)) for "
            "a uniform site"
        )


def _check_no_angle(name: str, sites: list[Any]) -> None:
    """Refuse a density on the real line that goes on for ever with a period of 2 pi."""
    fn = sites[0]["fn"]
    if base_support(fn) is constraints.real and all(map(_is_periodic, sites)):
        raise ValueError(
            f"latent site {name!r}, a {type(innermost(fn)).__name__}, is an angle on the real "
            "line, where its density goes on for ever; accepted: an interval of 2 pi around its "
            f"place loc, such as d = pyro.sample({name + '_shift'!r}, dist.Uniform(-pi, pi)"
            f".mask(False)), pyro.factor({name + '_density'!r}, dist.VonMises(0.0, concentration)"
            f".log_prob(d)) and {name} = loc + d{see('error-discrete-latent')}"
        )


def _is_periodic(site: Any) -> bool:
    with torch.no_grad(), pyro.validation_enabled(False):
        here, near, far = (
            site["fn"].log_prob(site["value"] + shift) for shift in (0.0, 1.0, 2 * math.pi)
        )
    rounding = 1e3 * torch.finfo(here.dtype).eps * (1.0 + here.abs())
    same, flat = (far - here).abs() <= rounding, (near - here).abs() <= rounding
    return bool(same.all()) and not bool(flat.all())


def check_data(traces: list[Any]) -> None:
    """Refuse data that are NaN in all of these runs, but where a mask hides them."""
    for name, site in traces[0].nodes.items():
        if site["type"] != "sample" or not site["is_observed"] or is_function(site):
            continue
        runs = [trace.nodes[name] for trace in traces if name in trace.nodes]
        values = [torch.as_tensor(filled(run["fn"], run["value"], run["mask"])) for run in runs]
        number = min(int(value.isnan().sum()) for value in values)
        if number:
            raise ValueError(
                f"observed site {name!r} has {number} NaN of {values[0].numel()}; accepted: "
                "numbers, or NaN where a mask hides them: dist.Normal(...).mask(~y.isnan())"
            )


def fill_masked(program: Program, trace: Any) -> Program:
    """The program with NaN under its masks replaced, if a trace of it has any, and imputed data."""
    data = [site["value"] for site in trace.nodes.values() if site.get("is_observed")]
    has_nan = any(isinstance(x, Tensor) and bool(x.isnan().any()) for x in data)
    is_imputed = any(name.endswith("_unobserved") for name in trace.nodes)
    return FillMasked()(program) if has_nan else Imputed()(program) if is_imputed else program


class FillMasked(Imputed):
    """Data that are NaN under a mask, replaced: else gradients are NaN, though energies are not."""

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        if msg["is_observed"]:
            msg["value"] = filled(msg["fn"], msg["value"], msg["mask"])


def filled(fn: Any, value: Any, mask: Any = None) -> Any:
    """Data with the first whole cell in place of each that is NaN and hidden by a mask."""
    is_number = isinstance(value, Tensor) and value.is_floating_point()
    hidden = hidden_by_masks(fn, mask)
    if not is_number or hidden is None or isinstance(innermost(fn), Delta):
        return value
    cells = value.reshape(-1, *value.shape[value.dim() - fn.event_dim :])
    is_whole = ~cells.reshape(len(cells), -1).isnan().any(-1)
    first = cells.index_select(0, is_whole.byte().argmax().reshape(1))[0]
    is_count = False
    with contextlib.suppress(NotImplementedError):  # a distribution without a support
        is_count = fn.support.is_discrete
    first = first.nan_to_num(1.0 if is_count else 0.5)  # where none is whole
    return torch.where(value.isnan() & hidden, first, value)


def hidden_by_masks(fn: Any, mask: Any = None) -> Tensor | None:
    """Where the masks of a distribution and of its site hide a value, which it broadcasts to."""
    levels = [(mask, fn)]  # masks, and what each acts on
    while isinstance(fn, WRAPPERS):
        levels.append((getattr(fn, "_mask", None), fn))
        fn = fn.base_dist
    hidden = None
    for own, level in levels:
        if own is not None:
            own = torch.as_tensor(own).bool()
            own = ~own.reshape(own.shape + (1,) * level.event_dim)
            hidden = own if hidden is None else hidden | own
    return hidden
