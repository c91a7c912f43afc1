# SPDX-License-Identifier: Apache-2.0
"""The command line: its options, the Ising job and the report."""
