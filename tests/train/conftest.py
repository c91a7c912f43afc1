# SPDX-License-Identifier: Apache-2.0
"""The solvable target and the small flow of tests/infer."""

from tests.infer.conftest import flow, target

__all__ = ["flow", "target"]
