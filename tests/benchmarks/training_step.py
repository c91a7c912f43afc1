# SPDX-License-Identifier: Apache-2.0
"""One training step at the paper's set-up, ours against the straightforward version.

L = 16, batch 512, 10 couplings of 3 hidden layers of 10 on 2 x 2 blocks, Adam 1e-3, float32, and
the same weights, hence the same ln q, which is checked first. Once with the plain density, once
with that of the mixture over x -> -x. The two versions take turns; the table has medians.

    python -m tests.benchmarks.training_step [--threads 2] [--repeats 9]

The straightforward version is close in structure to the authors' public code: blocks are gathered
by advanced indexing and scattered into a clone, couplings mask the block (so that the networks are
4 wide on both ends), s and t have networks of their own, and the symmetrised density takes three
passes: one to sample, two for ln q(x) and ln q(-x). No check for NaN and no printing, which the
authors' code has.

    python -m tests.benchmarks.training_step --guide [--threads 1] [--repeats 15]

With ``--guide`` instead a step of AutoHierarchicalFlow and PDD against one of the bare flow, with
ln q and the density of the model written out: a Gaussian field with noisy observations, batch 128.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_neuralrg import PDD, IsingDual, SymmetrizedFlow, hierarchical_flow
from pyro_neuralrg.distributions import FlowDistribution
from pyro_neuralrg.infer import AutoHierarchicalFlow
from pyro_neuralrg.train.optimizer import JoinedAdam
from pyro_neuralrg.transforms import Couplings, HierarchicalFlow
from tests.benchmarks.harness import in_turns, parse

SIDE, BATCH, LEARNING_RATE = 16, 512, 1e-3


class ScaledTanh(nn.Module):
    """``a * tanh(x)`` with one learned factor for each entry."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * torch.tanh(x)


def network(widths: Sequence[int], last: nn.Module | None) -> nn.Sequential:
    """Linear layers with ELU between them, and ``last`` behind."""
    modules: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        modules += [nn.Linear(before, after), nn.ELU()]
    return nn.Sequential(*modules[:-1], *([] if last is None else [last]))


class MaskedRealNVP(nn.Module):
    """Real NVP on (n, size): couplings ``x = m x + (1 - m)(x e^s + t)``; s, t depend on m x."""

    def __init__(self, masks: Tensor, hidden: Sequence[int]) -> None:
        super().__init__()
        size = masks.shape[1]
        widths = [size, *hidden, size]
        self.register_buffer("masks", masks)
        self.scale_nets = nn.ModuleList(network(widths, ScaledTanh(size)) for _ in masks)
        self.shift_nets = nn.ModuleList(network(widths, None) for _ in masks)

    def _terms(self, index: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """m x, (1 - m) s and (1 - m) t of one coupling."""
        mask = self.masks[index]
        held = x * mask
        s, t = self.scale_nets[index](held), self.shift_nets[index](held)
        return held, s * (1 - mask), t * (1 - mask)

    def generate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z to x with ln |det dx/dz|."""
        ladj = x.new_zeros(x.shape[0])
        for index, mask in enumerate(self.masks):
            held, s, t = self._terms(index, x)
            x = held + (1 - mask) * (x * torch.exp(s) + t)
            ladj = ladj + s.sum(-1)
        return x, ladj

    def renormalize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x to z with ln |det dz/dx|."""
        ladj = x.new_zeros(x.shape[0])
        for index in reversed(range(len(self.masks))):
            held, s, t = self._terms(index, x)
            x = held + (1 - self.masks[index]) * (x - t) * torch.exp(-s)
            ladj = ladj - s.sum(-1)
        return x, ladj


class StraightforwardFlow(nn.Module):
    """A circuit of blocks on (batch, L, L) fields.

    Each layer is a block and the sites it gathers, rows and columns of shape (blocks, 4).
    """

    def __init__(self, layers: Sequence[tuple[MaskedRealNVP, Tensor, Tensor]], side: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block for block, _, _ in layers)
        self.layers, self.side = layers, side

    def run(self, x: Tensor, direction: str) -> tuple[Tensor, Tensor]:
        """``generate`` or ``renormalize`` all layers, with the sum of their ladj."""
        ladj = x.new_zeros(x.shape[0])
        layers = self.layers if direction == "renormalize" else reversed(self.layers)
        for block, rows, columns in layers:
            blocks = x[:, rows, columns]
            moved, more = getattr(block, direction)(blocks.reshape(-1, rows.shape[1]))
            x = x.clone()
            x[:, rows, columns] = moved.reshape(blocks.shape)
            ladj = ladj + more.reshape(x.shape[0], -1).sum(1)
        return x, ladj

    def log_prob(self, x: Tensor) -> Tensor:
        """ln q(x) by a pass from x to z."""
        z, ladj = self.run(x, "renormalize")
        return normal_log_prob(z) + ladj

    def sample(self, batch: int) -> tuple[Tensor, Tensor]:
        """Fields with ln q, by one pass from z to x."""
        z = torch.randn(batch, self.side, self.side, dtype=next(self.parameters()).dtype)
        x, ladj = self.run(z, "generate")
        return x, normal_log_prob(z) - ladj

    def symmetrized_log_prob(self, x: Tensor) -> Tensor:
        """ln of (q(x) + q(-x)) / 2, by two passes."""
        both = torch.stack([self.log_prob(x), self.log_prob(-x)])
        return both.logsumexp(0) - math.log(2)

    def symmetrized_sample(self, batch: int) -> tuple[Tensor, Tensor]:
        """Fields of the symmetrised density with their ln q, by three passes."""
        x, _ = self.sample(batch)
        signs = torch.randint(2, (batch, 1, 1)).to(x.dtype) * 2 - 1
        x = x * signs
        return x, self.symmetrized_log_prob(x)


def normal_log_prob(z: Tensor) -> Tensor:
    """ln N(z; 0, 1) of (batch, L, L)."""
    return (-0.5 * z * z - 0.5 * math.log(2 * math.pi)).sum((-2, -1))


def straightforward_copy(flow: HierarchicalFlow) -> StraightforwardFlow:
    """The straightforward version of a "realnvp" flow of ours, with its weights.

    The lattice is periodic, L x L with L a power of two.
    """
    layers = []
    side = flow.shape[0]
    for layer, transforms in zip(flow.circuit.layers, flow.layers, strict=True):
        step = 2**layer.scale
        corners = torch.arange(0, side, 2 * step)[:, None] + torch.tensor([0, step])
        row, column = ((corners + shift * step) % side for shift in layer.shift)
        sites = torch.broadcast_tensors(row[:, None, :, None], column[:, None, :])
        rows, columns = (places.reshape(-1, 4) for places in sites)
        layers.append((_masked_copy(transforms[0]), rows, columns))
    return StraightforwardFlow(layers, side)


@torch.no_grad()
def _masked_copy(couplings: Couplings) -> MaskedRealNVP:
    """Ours hold s before t in every hidden layer; ``form`` is the head of s, ``place`` of t."""
    size, example = couplings.event_shape[0], couplings.packed
    masks = example.new_zeros(len(couplings.halves), size)
    block = MaskedRealNVP(masks, couplings.options.hidden).to(example.dtype)
    sequence = couplings._sequence()
    networks = sequence.networks(sequence.weights(None))
    for index, (network, (held, moved)) in enumerate(zip(networks, couplings.halves, strict=True)):
        block.masks[index, held] = 1
        *hidden, place, place_bias, form, form_bias, _, bound = network.arrays
        scale_net, shift_net = block.scale_nets[index], block.shift_nets[index]
        scale_net[-1].scale[moved] = bound
        for half, net, head, head_bias in (
            (0, scale_net, form, form_bias),
            (1, shift_net, place, place_bias),
        ):
            first, *inner, last = (module for module in net if isinstance(module, nn.Linear))
            own = [array.chunk(2)[half] for array in hidden]
            first.weight[:, held] = own[0]
            for module, matrix in zip(inner, own[2::2], strict=True):
                module.weight.copy_(matrix.chunk(2, 1)[half])
            for module, bias in zip((first, *inner), own[1::2], strict=True):
                module.bias.copy_(bias)
            last.weight[moved] = head.chunk(2, 1)[half]
            last.bias[moved] = head_bias
    return block


def paper_flow(dtype: torch.dtype = torch.float32) -> HierarchicalFlow:
    """The paper's flow with weights that are not those of the start."""
    flow = hierarchical_flow((SIDE, SIDE), bijector="realnvp", dtype=dtype)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return flow


def density(flow: HierarchicalFlow, symmetrized: bool) -> Any:
    return SymmetrizedFlow(flow) if symmetrized else FlowDistribution(flow)


def largest_difference(dtype: torch.dtype, symmetrized: bool) -> float:
    """Largest relative difference of the two ln q on a batch of our samples."""
    flow = paper_flow(dtype)
    theirs = straightforward_copy(flow)
    with torch.no_grad():
        x = flow(torch.randn(BATCH, SIDE, SIDE, dtype=dtype)).clone()
        ours = density(flow, symmetrized).log_prob(x)
        other = theirs.symmetrized_log_prob(x) if symmetrized else theirs.log_prob(x)
    return float(((ours - other) / other).abs().max())


def our_step(
    flow: HierarchicalFlow, q: Any, energy: Callable[[Tensor], Tensor], batch: int
) -> Callable[[], None]:
    """A step on the flow of a density q."""
    optimizer = JoinedAdam(list(flow.parameters()), LEARNING_RATE)

    def step() -> None:
        x = q.rsample((batch,))
        gradient = optimizer.gradient((q.log_prob(x) + energy(x)).mean())
        optimizer.step(gradient, float(gradient.norm()))

    return step


def their_step(
    flow: StraightforwardFlow, target: IsingDual, symmetrized: bool
) -> Callable[[], None]:
    optimizer = torch.optim.Adam(flow.parameters(), LEARNING_RATE)
    sample = flow.symmetrized_sample if symmetrized else flow.sample

    def step() -> None:
        optimizer.zero_grad()
        x, log_q = sample(BATCH)
        (log_q + target.energy(x)).mean().backward()
        optimizer.step()

    return step


def guided_step(data: Tensor, batch: int) -> Callable[[], None]:
    """A model, its guide and the ELBO."""

    def model() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros_like(data), 1.0).to_event(2))
        pyro.sample("y", dist.Normal(x, 0.5).to_event(2), obs=data)

    guide = AutoHierarchicalFlow(model, "x")
    loss = PDD(num_particles=batch, max_plate_nesting=0, vectorize_particles=True)
    optimizer = JoinedAdam(list(guide.parameters()), LEARNING_RATE)

    def step() -> None:
        gradient = optimizer.gradient(loss.differentiable_loss(model, guide))
        optimizer.step(gradient, float(gradient.norm()))

    return step


def compare_guide(repeats: int, batch: int = 128) -> None:
    """The ratio of medians of CPU time."""
    data, flow = torch.randn(SIDE, SIDE), hierarchical_flow((SIDE, SIDE))

    def energy(x: Tensor) -> Tensor:
        return (0.5 * x.square() + 2.0 * (x - data).square()).sum((-1, -2))

    steps = [guided_step(data, batch), our_step(flow, FlowDistribution(flow), energy, batch)]
    in_turns(steps, 1)
    with pyro.validation_enabled(False):
        one, other = map(statistics.median, in_turns(steps, repeats))
    print(f"{1e3 * one:.1f} ms with the guide, {1e3 * other:.1f} without: {one / other:.2f}")


def main() -> None:
    options = parse(
        __doc__,
        threads=torch.get_num_threads(),
        repeats=9,
        guide=(False, "a guide against its flow instead"),
    )
    torch.manual_seed(0)
    if options.guide:
        compare_guide(options.repeats)
        return
    print(f"L = {SIDE}, batch {BATCH}, {options.threads} threads, torch {torch.__version__}")
    for symmetrized, name in ((False, "plain"), (True, "symmetrised")):
        for dtype in (torch.float32, torch.float64):
            difference = largest_difference(dtype, symmetrized)
            print(f"{name}: ln q differs by {difference:.1e} ({dtype})")
        flow, target = paper_flow(), IsingDual((SIDE, SIDE))
        ours = our_step(flow, density(flow, symmetrized), target.energy, BATCH)
        theirs = their_step(straightforward_copy(flow), target, symmetrized)
        in_turns([ours, theirs], 1)  # compile, allocate
        times = in_turns([ours, theirs], options.repeats, time.perf_counter)
        one, other = map(statistics.median, times)
        ratios = [b / a for a, b in zip(*times, strict=True)]
        print(
            f"{name}: {1e3 * one:.0f} ms against {1e3 * other:.0f} ms: {other / one:.1f} times as "
            f"fast (single pairs {min(ratios):.1f} to {max(ratios):.1f})"
        )


if __name__ == "__main__":
    main()
