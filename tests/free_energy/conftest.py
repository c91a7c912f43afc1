# SPDX-License-Identifier: Apache-2.0
"""The solvable target and its flow, of the tests of training and guides."""

from tests.infer.conftest import flow as flow
from tests.infer.conftest import target as target
