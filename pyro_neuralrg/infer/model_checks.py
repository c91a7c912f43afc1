# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""What no chain can sample of a Pyro model, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyro.poutine.util import site_is_subsample
from torch import Tensor

__all__ = ["check_model_args", "check_no_subsampling", "check_not_enumerated"]


def check_model_args(args: Any) -> None:
    """A tensor alone would be taken apart, a string likewise."""
    if isinstance(args, str | Tensor) or not isinstance(args or (), Sequence):
        raise TypeError(
            f"model_args is a {type(args).__name__}; accepted: a sequence of the model's arguments"
        )


def check_no_subsampling(trace: Any) -> None:
    """Each step of a chain would see other data."""
    plates = [
        f"{name!r} ({site['fn'].subsample_size} of {site['fn'].size})"
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and site_is_subsample(site)
        and site["fn"].subsample_size not in (None, site["fn"].size)
    ]
    if plates:
        raise ValueError(
            f"model has subsampled plates {', '.join(plates)}; accepted: plates of all data "
            "(without subsample_size), since every step of a chain needs one and the same density "
            "(SVI takes subsamples)"
        )


def check_not_enumerated(
    transforms: Mapping[str, Any], trace: Any, plain: Any, discrete: Sequence[str]
) -> None:
    """A continuous site that depends on an enumerated one has a value for each of its values."""
    for name in transforms:
        seen, alone = (tuple(t.nodes[name]["value"].shape) for t in (trace, plain))
        if seen != alone:
            raise ValueError(
                f"site {name!r} of shape {alone} depends on a discrete site, {list(discrete)}, "
                f"which is enumerated, and has shape {seen} there; accepted: continuous sites that "
                "depend on continuous ones only; write the mixture as one site "
                "(MixtureSameFamily), or let the discrete site act on observations"
            )
