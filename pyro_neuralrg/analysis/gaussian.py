# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
"""The mutual information of groups of Gaussian variables, exactly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pyro_neuralrg.analysis.scales import check_tensor
from pyro_neuralrg.arguments import check_integer

__all__ = ["gaussian_mutual_information"]


def gaussian_mutual_information(
    covariance: Tensor, first: Sequence[int] | Tensor, second: Sequence[int] | Tensor
) -> float:
    r"""I(A : B) of two groups of jointly Gaussian variables, in nats.

    .. math:: I(A : B) = \tfrac12 \ln \frac{\det C_A \det C_B}{\det C_{AB}}

    Bijections within A and within B leave it unchanged, and latents that are independent of all
    else can then be left out. So a step of a tree, whose blocks lie in A or in B, hands it on to
    the variables that it keeps (paper Eq. 2):

    .. math:: I(A : B) = I(R_A \cup z_A : R_B \cup z_B) = I(R_A : R_B)

    Args:
        covariance: of all variables, shape ``(n, n)``; a field of covariance shape ``shape +
            shape`` is to be reshaped.
        first: flat indices of the variables of A.
        second: those of B, none of which is in A.

    Raises:
        TypeError: if the covariance is no floating tensor or an index no integer.
        ValueError: if it is no symmetric, positive definite matrix, or the groups are empty, repeat
            a variable or share one.

    Example:
        >>> covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
        >>> round(gaussian_mutual_information(covariance, [0], [1]), 4)  # -ln(1 - 0.8^2) / 2
        0.5108
    """
    matrix = _check_covariance(covariance)
    size = len(matrix)
    a, b = _check_group("first", first, size), _check_group("second", second, size)
    if len({*a, *b}) < len(a) + len(b):
        raise ValueError("first and second repeat or share a variable; accepted: disjoint groups")
    return 0.5 * (_log_det(matrix, a) + _log_det(matrix, b) - _log_det(matrix, a + b))


def _log_det(matrix: Tensor, group: list[int]) -> float:
    factor = torch.linalg.cholesky(matrix[group][:, group])
    return 2.0 * float(factor.diagonal().log().sum())


def _check_covariance(covariance: Tensor) -> Tensor:
    check_tensor("covariance", covariance)
    matrix = covariance.double()
    shape = tuple(matrix.shape)
    if matrix.dim() != 2 or shape[0] != shape[1]:
        raise ValueError(f"covariance has shape {shape}; accepted: (n, n)")
    symmetric = bool(matrix.isfinite().all()) and torch.allclose(
        matrix, matrix.T, rtol=0.0, atol=1e-6 * float(matrix.abs().max())
    )
    if not symmetric or int(torch.linalg.cholesky_ex(matrix).info):
        raise ValueError(
            "covariance is not symmetric and positive definite; accepted: a matrix that is"
        )
    return matrix


def _check_group(name: str, group: Sequence[int] | Tensor, size: int) -> list[int]:
    accepted = f"flat indices of variables, integers from 0 to {size - 1}"
    given = group.flatten().tolist() if isinstance(group, Tensor) else group
    if not isinstance(given, Iterable) or isinstance(given, str | bytes):
        raise TypeError(f"{name} is {group!r}; accepted: {accepted}")
    given = list(given)
    if not given:
        raise ValueError(f"{name} is empty; accepted: flat indices of at least one variable")
    return [check_integer(name, index, 0, size - 1, accepted) for index in given]
