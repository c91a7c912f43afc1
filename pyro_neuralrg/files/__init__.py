# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or absent, and folders in which long runs are recorded."""

from pyro_neuralrg.files.record import CheckpointError, Record

__all__ = ["CheckpointError", "Record"]
