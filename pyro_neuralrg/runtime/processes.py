# SPDX-License-Identifier: Apache-2.0
"""The processes of one run, this one alone or a ``torch.distributed`` group, and their seeds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, distributed

from pyro_neuralrg.arguments import LARGEST_SEED, check_integer

T = TypeVar("T")

LET_GO = 0.2
"""Seconds after the last message: gloo's threads let go of its tensors, for which they need Python,
and a Python that ends meanwhile ends the process by SIGABRT (torch 2.13)."""

SEED_STRIDE = 0x9E3779B97F4A7C15
"""Distance of the seeds of two processes: 2^64 over the golden ratio, so that no two seeds that a
user may choose, such as 0 and 1, share a stream."""


class LostProcessError(RuntimeError):
    """Another process of the group has ended, or does not answer."""


class Processes(NamedTuple):
    """This process among those that do one run together.

    What is reduced or gathered is the same, bit for bit, on all of them. Every method has to be
    called by all processes, in the same order; of one process alone they cost nothing. Each raises
    a LostProcessError if another process has ended.
    """

    rank: int = 0  # of this process
    size: int = 1  # number of processes

    @property
    def is_first(self) -> bool:
        """True for the process that prints and writes."""
        return self.rank == 0

    def share(self, name: str, number: int) -> int:
        """This process's part of ``number``, the same for all, else a ValueError."""
        if number % self.size:
            fitting = self.size * max(1, round(number / self.size))
            raise ValueError(
                f"{name} is {number} over {self.size} processes; accepted: a multiple of "
                f"{self.size}, such as {fitting}"
            )
        return number // self.size

    def seed(self, seed: int | None) -> int | None:
        """Seed of this process: on the first one the given one itself.

        For None it is drawn from the random state of the first process if there are several, since
        fresh processes would all draw the same numbers.
        """
        if self.size > 1 and seed is None:
            seed = self.broadcast_from_first(lambda: int(torch.randint(LARGEST_SEED, ())))
        return seed if seed is None else self.stream(seed)

    def stream(self, seed: int) -> int:
        """Seed of this process, from a given one."""
        seed = check_integer("seed", seed, 0, LARGEST_SEED)
        return (seed + self.rank * SEED_STRIDE) % (LARGEST_SEED + 1)

    def rows(self, number: int) -> slice:
        """This process's rows of ``number``, cut into equal stretches by rank.

        >>> Processes(1, 2).rows(6)
        slice(3, 6, None)
        """
        share = number // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over processes, in place."""
        if self.size > 1:
            sent = value.to(_sending_device(value.device)).contiguous()
            with _answered():
                distributed.all_reduce(sent)
            sent /= self.size
            if sent is not value:
                value.copy_(sent)
        return value

    def gather(self, value: Tensor) -> Tensor:
        """The tensors of all processes, of one shape, joined along the first axis by rank."""
        if self.size == 1:
            return value
        if value.dtype == torch.bool:  # which not every backend sends
            return self.gather(value.byte()).bool()
        # gloo reads memory as it lies
        present = value.to(_sending_device(value.device)).contiguous()
        parts = [torch.empty_like(present) for _ in range(self.size)]
        with _answered():
            distributed.all_gather(parts, present)
        return torch.cat(parts).to(value.device)

    def any_process(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set on any process."""
        if self.size == 1:
            return flags
        found = self.gather(torch.tensor([flags], dtype=torch.uint8))
        return tuple(bool(flag) for flag in found.amax(0))

    def first(self, number: int) -> int:
        """The number of the first process, on all."""
        return number if self.size == 1 else int(self.gather(torch.tensor([number]))[0])

    def run_on_all(self, compute: Callable[[], T]) -> T:
        """The result of ``compute`` here; an exception that it raises on any process, all raise."""
        if self.size == 1:
            return compute()
        found, failure = _outcome(compute)
        failures: list[Exception | None] = [None] * self.size
        with _answered():
            distributed.all_gather_object(failures, failure)
        for one in failures:
            if one is not None:
                raise one
        return cast(T, found)

    def broadcast_from_first(self, compute: Callable[[], T]) -> T:
        """The result, or the exception, of ``compute``, which the first process alone calls."""
        if self.size == 1:
            return compute()
        outcome = list(_outcome(compute)) if self.is_first else [None, None]
        with _answered():
            place = _sending_device(torch.device("cpu"))
            distributed.broadcast_object_list(outcome, src=0, device=place)
        if outcome[1] is not None:
            raise outcome[1]
        return cast(T, outcome[0])


def processes() -> Processes:
    """The processes of the initialised ``torch.distributed`` group, or this one alone."""
    if distributed.is_available() and distributed.is_initialized():
        return Processes(distributed.get_rank(), distributed.get_world_size())
    return Processes()


def processes_here() -> int:
    """Number of processes that ``torchrun`` started on this host; 1 without it."""
    given = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(given)) if given.isdecimal() else 1


@contextmanager
def joined() -> Iterator[Processes]:
    """Be part of the group that ``torchrun`` started, inside the block; else alone.

    Tensors on CPUs go by gloo, those on GPUs by NCCL if every process has a GPU of its own.
    """
    if not (distributed.is_available() and distributed.is_torchelastic_launched()):
        yield Processes()
        return
    on_gpus = torch.cuda.is_available() and torch.cuda.device_count() >= processes_here()
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo")
    try:
        yield processes()
    finally:
        distributed.destroy_process_group()
        time.sleep(LET_GO)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed torch inside and put its random state back afterwards; nothing for None.

    Example:
        >>> with seeded(0):
        ...     one = torch.rand(())
        >>> with seeded(0):
        ...     bool(one == torch.rand(()))
        True
    """
    if seed is None:
        yield
        return
    seed = check_integer("seed", seed, 0, LARGEST_SEED)
    with random_state_kept():
        torch.manual_seed(seed)
        yield


def random_state_kept() -> AbstractContextManager[None]:
    """A context after which torch's random numbers go on as before, on all devices."""
    return torch.random.fork_rng(range(torch.cuda.device_count()))


def random_state(world: Processes, device: torch.device) -> dict[str, Tensor]:
    """States of torch's generators, one row for each process."""
    found = {"cpu": world.gather(torch.random.get_rng_state()[None])}
    if device.type == "cuda":
        found["cuda"] = world.gather(torch.cuda.get_rng_state(device)[None])
    return found


def set_random_state(saved: Mapping[str, Tensor], world: Processes, device: torch.device) -> None:
    """Set torch's generators to a state of :func:`random_state`."""
    torch.random.set_rng_state(saved["cpu"][world.rank].clone())
    if "cuda" in saved:
        torch.cuda.set_rng_state(saved["cuda"][world.rank].clone(), device)


def _outcome(compute: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """The result of ``compute``, or the exception that other processes are to raise, too."""
    try:
        return compute(), None
    except (ValueError, TypeError, OSError) as error:
        return None, error


@contextmanager
def _answered() -> Iterator[None]:
    """Say in one line what a broken connection means."""
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise LostProcessError(f"another process of this run has ended ({reason})") from None


def _sending_device(own: torch.device) -> torch.device:
    """Device from which a tensor on ``own`` can be sent by the backend of the group."""
    backend = distributed.get_backend()
    if backend == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu") if backend == "gloo" else own
