# SPDX-License-Identifier: Apache-2.0
"""Every use of what Pyro keeps private: its stack, its handlers' insides, names of its sites."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.infer.reparam import NeuTraReparam
from pyro.nn import PyroModule
from pyro.ops.integrator import _EXCEPTION_HANDLERS
from pyro.poutine.reparam_messenger import ReparamHandler, ReparamMessenger
from pyro.poutine.runtime import _PYRO_STACK, effectful
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import constraints
from torch.utils.weak import WeakTensorKeyDictionary

from pyro_neuralrg.arguments import a_kind, see
from pyro_neuralrg.runtime.console import warn_user

SHARED_LATENT = "_shared_latent"
"""Suffix of the site of a NeuTraReparam, behind the name of the first site that it replaces."""

_PLACED = WeakTensorKeyDictionary()
"""Tensors that modules have put into Pyro's parameter store; what is read from a file is none."""


def register_parameters(owner: PyroModule, attribute: str) -> None:
    """Name a submodule's trainable parameters to Pyro, as ``pyro.module`` does, but always its own.

    How they and the store go together is told by :class:`~pyro_neuralrg.infer.FlowGuide`.
    """
    if torch._C._get_tracing_state() is not None:
        raise ValueError(
            f"the loss traces the guide {owner._pyro_name!r} by torch.jit, as Pyro's Jit..._ELBO "
            "do; accepted: PDD, or Pyro's losses without Jit, such as Trace_ELBO"
        )
    take_loaded(owner, attribute)
    store, prefix = pyro.get_param_store(), f"{owner._pyro_name}.{attribute}$$$"
    module: Any = owner._modules[attribute]  # an attribute would be registered by Pyro
    named = {prefix + name: p for name, p in module.named_parameters() if p.requires_grad}
    is_taken = any(store._params.get(name, p) is not p for name, p in named.items())
    if is_taken and not owner.__dict__.get("_has_compared"):
        owner.__dict__["_has_compared"] = True
        others = (x for x, p in named.items() if x not in store or not torch.equal(store[x], p))
        if (other := next(others, None)) is not None:
            warn_user(
                f"Pyro's parameter store holds other values than the guide's for {other!r}, of "
                "another guide or a file; the guide goes on with its own, outside of the store "
                "(pyro.clear_param_store() empties it, guide.load_state_dict() loads values)"
            )
    statement = effectful(_outside_store if is_taken else store.get_param, type="param")
    for name, parameter in named.items():
        statement(name, parameter, constraint=constraints.real, event_dim=None, name=name)
    is_local = pyro.settings.get("module_local_params")  # and the store is not to be saved
    if not (is_taken or is_local) and named and next(iter(named)) in store:
        _place(module, prefix, store)


def take_loaded(owner: PyroModule, attribute: str) -> None:
    """Give a submodule the values that Pyro's parameter store was loaded with, if these are its."""
    store, prefix = pyro.get_param_store(), f"{owner._pyro_name}.{attribute}$$$"
    module: Any = owner._modules[attribute]
    known = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            found = store._params.get(prefix + name, parameter)
            if found is parameter or found in _PLACED or found.shape != parameter.shape:
                return
            known[prefix + name] = parameter
    state = _without_frozen(module)
    if known and all(prefix + name in store for name in state):
        module.load_state_dict({name: store._params[prefix + name] for name in state}, strict=False)
        for part in module.modules():
            if hasattr(part, "_cached_x_y"):  # of the parameters before
                part._cached_x_y = None, None
        store._params.update(known)
        store._param_to_name.update({value: name for name, value in known.items()})
        _place(module, prefix, store)


def _place(module: nn.Module, prefix: str, store: Any) -> None:
    """Lay a module's buffers into the store, and mark what is its own there."""
    for name, value in _without_frozen(module).items():
        found = store._params.get(prefix + name)
        if found is None or (found is not value and found.data_ptr() != value.data_ptr()):
            # a view, which takes the hooks that users hang on all in the store
            found = value.detach().requires_grad_(value.is_floating_point())
            store._params[prefix + name] = found
            store._param_to_name[found] = prefix + name
            store._constraints[prefix + name] = constraints.real
        if found not in _PLACED:
            _PLACED[found] = True


def _without_frozen(module: nn.Module) -> dict[str, Tensor]:
    """Trained parameters and buffers, as they stand in the parameter store."""
    return {
        name: value
        for name, value in module.state_dict(keep_vars=True).items()
        if value.requires_grad or not isinstance(value, nn.Parameter)
    }


def _outside_store(name: str, parameter: Any, **options: Any) -> Tensor:
    """The value of a parameter that is not in the store, as of Pyro's module-local ones."""
    parameter.unconstrained = weakref.ref(parameter)
    return parameter


def is_in_program(module: PyroModule) -> bool:
    """Report whether the module is being called, so that its parameters are Pyro's to see."""
    return bool(module._pyro_context.active)


def num_plate_dims(sites: Iterable[Any]) -> int:
    """Batch dimensions that the vectorised plates of these sites take."""
    frames = [frame for site in sites for frame in site["cond_indep_stack"]]
    return max((-frame.dim for frame in frames if frame.vectorized), default=0)


def subsampled_plates(trace: Any) -> str:
    """Names of the subsampled plates with their sizes; empty if there are none."""
    return ", ".join(
        f"{name!r} ({site['fn'].subsample_size} of {site['fn'].size})"
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and site_is_subsample(site)
        and site["fn"].subsample_size not in (None, site["fn"].size)
    )


def check_no_subsampling(trace: Any) -> None:
    """Refuse subsampled plates: each step of a chain would see other data."""
    plates = subsampled_plates(trace)
    if plates:
        raise ValueError(
            f"model has subsampled plates {plates}; accepted: plates of all data "
            "(without subsample_size), since every step of a chain needs one and the same density "
            f"(SVI takes subsamples){see('error-subsampled-plate')}"
        )


def refuse_within_plate(name: str, seen: tuple[int, ...], alone: tuple[int, ...]) -> None:
    """Refuse a site that is initialised without the dimensions of its plate."""
    raise ValueError(
        f"site {name!r} of shape {alone} is initialised with shape {seen}, since it is "
        "reparameterised within a plate; accepted: poutine.reparam around the whole model, "
        "poutine.reparam(model, config={...})"
    )


def check_not_enumerated(
    names: Iterable[str], trace: Any, plain: Any, discrete: Sequence[str]
) -> None:
    """Refuse continuous sites with a value for each value of an enumerated one."""
    for name in names:
        seen, alone = (tuple(t.nodes[name]["value"].shape) for t in (trace, plain))
        if len(seen) < len(alone):
            refuse_within_plate(name, seen, alone)
        if seen != alone:
            raise ValueError(
                f"site {name!r} of shape {alone} depends on a discrete site, {list(discrete)}, "
                f"which is enumerated, and has shape {seen} there; accepted: continuous sites that "
                "depend on continuous ones only; write the mixture as one site "
                "(MixtureSameFamily), or let the discrete site act on observations"
            )


def check_model_args(args: Any) -> None:
    """Refuse a tensor or a string, which would be taken apart."""
    if isinstance(args, str | Tensor) or not isinstance(args or (), Sequence):
        raise TypeError(
            f"model_args is {a_kind(args)}; accepted: a sequence of the model's arguments"
        )


def is_numerical(error: Exception) -> bool:
    """Report whether a model fails at some values only, where chains are to reject them.

    Errors of torch.linalg, values that a distribution's validation finds invalid, and what Pyro's
    kernels reject (``pyro.ops.integrator.register_exception_handler``).
    """
    is_invalid = isinstance(error, ValueError) and "found invalid values" in str(error)
    is_singular = isinstance(error, torch.linalg.LinAlgError)  # type: ignore[attr-defined]
    return is_invalid or is_singular or any(known(error) for known in _EXCEPTION_HANDLERS.values())


@contextmanager
def numbers_may_fail() -> Iterator[None]:
    """A context for trials of a model, which tell nothing where it fails at their values."""
    try:
        yield
    except Exception as error:
        if not is_numerical(error):
            raise


def retried(draw: Callable[[], Any]) -> Any:
    """A draw at which the numbers of a model do not fail, of at most ten."""
    for _ in range(9):
        with numbers_may_fail():
            return draw()
    return draw()


def is_being_reparameterised() -> bool:
    """Report whether the present statement is made within ``poutine.reparam``."""
    return any(isinstance(frame, ReparamMessenger) for frame in _PYRO_STACK)


def is_being_initialised() -> bool:
    """Report whether the present statement is made within Pyro's ``init_to_...``."""
    return any(isinstance(frame, InitMessenger) for frame in _PYRO_STACK)


def reparameterisations(model: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each ``poutine.reparam`` around a model, outermost first: its config, the rest."""
    while isinstance(model, ReparamHandler):
        yield model.msngr.config, model.fn
        model = model.fn


def find_neutra(model: Any, latent: str, trace: Any) -> tuple[str, NeuTraReparam] | None:
    """The site and the transport behind a latent site, if it is that of a NeuTraReparam."""
    site = trace.nodes.get(latent.removesuffix(SHARED_LATENT))
    if site is None or not latent.endswith(SHARED_LATENT):
        return None
    for config, _ in reparameterisations(model):
        found = config.get(site["name"]) if isinstance(config, dict) else config(site)
        if isinstance(found, NeuTraReparam):
            return site["name"], found
    return None


def guide_shapes(guide: Any) -> Mapping[str, tuple[int, ...]]:
    """Unconstrained shape of each latent site of an AutoContinuous guide, in its order."""
    return {name: tuple(shape) for name, shape in guide._unconstrained_shapes.items()}


def check_guide_of(sites: Mapping[str, tuple[int, ...]], guide: Any) -> None:
    """Refuse a guide of other sites than a model's, of these unconstrained shapes."""
    shapes = {} if guide.prototype_trace is None else guide_shapes(guide)
    if shapes != dict(sites):
        raise ValueError(
            f"model has the latent sites {dict(sites)} (unconstrained shapes), and the guide "
            f"{dict(shapes)}; accepted: the model of the guide, which has seen it, with arguments "
            "of the same shapes"
        )


def entries_of_sites(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Places of each site's entries in the vector of all sites, one after the other."""
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    return dict(zip(shapes, torch.arange(sum(sizes)).split(sizes), strict=True))
