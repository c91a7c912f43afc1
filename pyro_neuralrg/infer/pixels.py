# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""Images of a few grey levels as fields on a lattice, and likelihoods in bits per pixel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_neuralrg.arguments import check_integer, check_number

__all__ = ["Pixels"]


class Pixels:
    r"""Grey levels 0 .. n - 1 as real fields, by uniform noise and a logit.

    .. math:: u = (\text{pixel} + U) / n, \qquad x = \ln\frac{s}{1 - s}, \quad
        s = \alpha + (1 - 2\alpha) u

    with U uniform in [0, 1): a density of fields then bounds the probability of images from below
    (Theis et al. 2016), and the logit (Dinh et al. 2017) takes the ends of the scale to where a
    flow can follow, as ``margin`` alpha says.

    Args:
        levels: n, at least 2.
        margin: alpha, in (0, 1/2).

    Raises:
        TypeError, ValueError: naming the argument, the value seen and what is accepted.

    References:
        L. Theis, A. van den Oord and M. Bethge, A note on the evaluation of generative models, ICLR
        (2016).
        L. Dinh, J. Sohl-Dickstein and S. Bengio, Density estimation using Real NVP, ICLR (2017).

    Example:
        >>> pixels = Pixels(levels=17)
        >>> image = torch.tensor([[0, 16], [8, 3]])
        >>> bool((pixels.decode(pixels.encode(image)) == image).all())
        True
    """

    def __init__(self, levels: int, margin: float = 0.05) -> None:
        self.levels = check_integer("levels", levels, 2)
        accepted = "a number in (0, 0.5)"
        self.margin = check_number("margin", margin, accepted, above=0, below=0.5)

    def encode(self, images: Tensor) -> Tensor:
        """Fields of images of integers, of the same shape, with fresh noise each time.

        Raises:
            ValueError: if an entry is no level.
        """
        levels = images.to(torch.get_default_dtype())
        if not bool(((levels >= 0) & (levels < self.levels) & (levels == levels.round())).all()):
            raise ValueError(
                f"images has entries from {float(levels.min())} to {float(levels.max())}; "
                f"accepted: integers from 0 to {self.levels - 1}"
            )
        u = (levels + torch.rand_like(levels)) / self.levels
        return torch.logit(self.margin + (1 - 2 * self.margin) * u)

    def decode(self, x: Tensor) -> Tensor:
        """Images of fields: integers, those beyond the ends of the scale clipped."""
        u = (torch.sigmoid(x) - self.margin) / (1 - 2 * self.margin)
        return (u * self.levels).floor().clamp(0, self.levels - 1).long()

    def bits_per_pixel(self, x: Tensor, log_q: Tensor) -> Tensor:
        r"""-log2 of the density of images per pixel, an upper bound of the bits they cost.

        :math:`[-\ln q(x) - \sum\ln\frac{dx}{du}] / (N\ln 2) + \log_2 n`

        Args:
            x: fields made by :meth:`encode`, shape ``(n,) + shape``.
            log_q: ln q of each, shape ``(n,)``, in nats.

        Returns:
            Shape ``(n,)``.

        Example:
            >>> pixels = Pixels(2)  # u uniform in [0, 1): a bit for each pixel of two levels
            >>> x = pixels.encode(torch.tensor([[0, 1, 1]]))
            >>> s = torch.sigmoid(x)
            >>> log_q = (s * (1 - s) / 0.9).log().sum(-1)
            >>> round(float(pixels.bits_per_pixel(x, log_q)), 4)
            1.0
        """
        # ln s (1 - s), without rounding at either end
        log_slope = torch.nn.functional.logsigmoid(x) + torch.nn.functional.logsigmoid(-x)
        per_u = math.log(1 - 2 * self.margin) - log_slope
        nats = -log_q - per_u.flatten(1).sum(1)
        return nats / (per_u[0].numel() * math.log(2)) + math.log2(self.levels)
