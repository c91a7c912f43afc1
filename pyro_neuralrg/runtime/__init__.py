# SPDX-License-Identifier: Apache-2.0
"""Processes, threads, interrupts, seeds, memory and progress."""
