# SPDX-License-Identifier: Apache-2.0
"""Neural network renormalization group in one file, on torch alone.

The paper (S.-H. Li and L. Wang, PRL 121, 260601, 2018) for the Ising model on a periodic square
lattice at its critical temperature: the continuous dual (Eq. 7), the hierarchical flow of Real NVP
blocks (Fig. 1), its training without data (Eqs. 3 to 5), the bound of the free energy beside the
exact one, and HMC among the latents (Eq. 6). The package's flows reach smaller gaps in less time.

    python tutorials/minimal.py [--side 8] [--steps 600]
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor, nn

CRITICAL = 2 / math.log(1 + math.sqrt(2))  # temperature in units of J


# The target: spins, and the continuous field dual to them -----------------------------------------


class IsingDual:
    """pi(x) = exp(-x (K + alpha)^-1 x / 2) prod_i cosh x_i, K_ij = 1 / T between neighbours."""

    def __init__(self, side: int, temperature: float = CRITICAL) -> None:
        self.side, self.temperature = side, temperature
        sites = torch.arange(side * side).view(side, side)
        bonds = torch.zeros(side * side, side * side, dtype=torch.float64)
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            bonds[sites.flatten(), sites.roll(step, axis).flatten()] += 1 / temperature
        self.alpha = 0.1 - float(torch.linalg.eigvalsh(bonds)[0])  # the lowest eigenvalue is 0.1
        self.covariance = bonds + self.alpha * torch.eye(side**2, dtype=torch.float64)
        self.precision = torch.linalg.inv(self.covariance).to(torch.zeros(()))

    def energy(self, x: Tensor) -> Tensor:
        """-ln pi of fields ``(n, side * side)``, in nats."""
        log_cosh = torch.logaddexp(x, -x) - math.log(2)
        return 0.5 * (x @ self.precision * x).sum(-1) - log_cosh.sum(-1)

    def spins(self, x: Tensor) -> Tensor:
        """Draws of pi(s | x) = prod_i 1 / (1 + exp(-2 s_i x_i))."""
        return torch.where(torch.rand_like(x) < torch.sigmoid(2 * x), 1.0, -1.0)

    def log_partition(self) -> float:
        """ln Z of the dual, from that of the spins: a Gaussian integral over the field."""
        sites = self.side**2
        constant = 0.5 * sites * (math.log(math.pi / 2) + self.alpha)
        gaussian = 0.5 * float(torch.logdet(self.covariance))
        return kaufman(self.side, 1 / self.temperature) + gaussian + constant


def kaufman(side: int, k: float) -> float:
    """ln Z of the spins on a periodic square (B. Kaufman, Phys. Rev. 76, 1232, 1949)."""
    angles = math.pi * torch.arange(2 * side, dtype=torch.float64) / side
    cosh = math.cosh(2 * k) ** 2 / math.sinh(2 * k) - angles.cos()
    gamma = torch.acosh(cosh.clamp(min=1))
    gamma[0] = 2 * k + math.log(math.tanh(k))  # negative above the critical temperature
    half = (0.5 * side * gamma).abs()
    large = half + torch.log1p((-2 * half).exp())  # ln 2 cosh
    small = half + torch.log1p(-(-2 * half).exp())  # ln |2 sinh|
    logs = torch.stack([large[1::2].sum(), small[1::2].sum(), large[::2].sum(), small[::2].sum()])
    terms = (logs - logs.max()).exp()
    total = (terms[:3].sum() + gamma[0].sign() * terms[3]) / 2
    return float(logs.max() + total.log()) + 0.5 * side**2 * math.log(2 * math.sinh(2 * k))


# The flow: blocks of four sites, arranged as disentanglers and decimators -------------------------


class Coupling(nn.Module):
    """Two sites v of a block are moved, v -> v exp(s(u)) + t(u), by what the other two, u, say."""

    def __init__(self, fixed: list[int], moved: list[int], width: int = 10) -> None:
        super().__init__()
        self.fixed, self.moved = fixed, moved
        self.s, self.t = network(width), network(width)
        self.bound = nn.Parameter(torch.ones(2))  # of s

    def map(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """s and t of two sites ``(..., 2)``."""
        return self.bound * torch.tanh(self.s(u)), self.t(u)

    def forward(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """From z towards x; the block, and ln |det| of each."""
        (s, t), moved = self.map(block[..., self.fixed]), block.clone()
        moved[..., self.moved] = block[..., self.moved] * s.exp() + t
        return moved, s.sum(-1)

    def inverse(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """From x towards z, with its own ln |det|."""
        (s, t), moved = self.map(block[..., self.fixed]), block.clone()
        moved[..., self.moved] = (block[..., self.moved] - t) * (-s).exp()
        return moved, -s.sum(-1)


def network(width: int) -> nn.Sequential:
    """From two sites to two numbers; small at the start, so that a coupling changes little."""
    layers: list[nn.Module] = []
    for inputs in (2, width, width):
        layers += [nn.Linear(inputs, width), nn.ELU()]
    last = nn.Linear(width, 2)
    with torch.no_grad():
        last.weight.mul_(0.01)
        last.bias.zero_()
    return nn.Sequential(*layers, last)


class Block(nn.Module):
    """Real NVP on four sites in a square: the diagonals move each other in turn."""

    def __init__(self, couplings: int = 10) -> None:
        super().__init__()
        diagonals = [0, 3], [1, 2]
        self.couplings = nn.ModuleList(
            Coupling(diagonals[i % 2], diagonals[1 - i % 2]) for i in range(couplings)
        )

    def run(self, blocks: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """All blocks of a layer, ``(n, blocks, 4)``, alike; ln |det| of each field."""
        total = blocks.new_zeros(len(blocks))
        for one in reversed(self.couplings) if inverse else self.couplings:
            blocks, ladj = one.inverse(blocks) if inverse else one(blocks)
            total = total + ladj.sum(-1)
        return blocks, total


class NeuralRG(nn.Module):
    """x = g(z), with one block for each layer; to be read from the fine lattice upwards.

    At every scale disentanglers act across the borders of the blocks, then decimators within them;
    the first site of each block goes on to the next scale, the other three are latents.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side, self.sites = side, []
        lattice = torch.arange(side * side).view(side, side)
        while len(lattice) > 1:
            if len(lattice) > 2:  # disentanglers, shifted by one site along both axes
                self.sites.append(squares(lattice.roll((-1, -1), (0, 1))))
            self.sites.append(squares(lattice))
            lattice = lattice[::2, ::2]
        self.blocks = nn.ModuleList(Block() for _ in self.sites)

    def run(self, field: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """z to x, or x to z, ``(n, sites)``; and ln |det| of that map."""
        total = field.new_zeros(len(field))
        layers = list(zip(self.blocks, self.sites, strict=True))
        for block, sites in layers if inverse else reversed(layers):
            moved, ladj = block.run(field[:, sites], inverse)
            field = field.index_copy(1, sites.flatten(), moved.flatten(1))
            total = total + ladj
        return field, total

    def log_q(self, x: Tensor) -> Tensor:
        """ln q(x) = ln p(z) + ln |det dz/dx| (Eqs. 1 and 2)."""
        z, ladj = self.run(x, inverse=True)
        return log_normal(z) + ladj


def squares(lattice: Tensor) -> Tensor:
    """The sites of each square of two by two, ``(squares, 4)``, row by row."""
    half = len(lattice) // 2
    return lattice.view(half, 2, half, 2).transpose(1, 2).reshape(-1, 4)


def log_normal(z: Tensor) -> Tensor:
    """ln p(z) of independent normals."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)


# Training, and what comes of it -------------------------------------------------------------------


def log_weights(flow: NeuralRG, target: IsingDual, number: int) -> tuple[Tensor, Tensor]:
    """Draws x of [q(x) + q(-x)] / 2, even as pi is, and ln pi(x) less its logarithm."""
    z = torch.randn(number, target.side**2)
    x, ladj = flow.run(z, inverse=False)
    log_q = torch.logaddexp(log_normal(z) - ladj, flow.log_q(-x)) - math.log(2)
    return torch.where(torch.rand(number, 1) < 0.5, x, -x), -target.energy(x) - log_q


def train(flow: NeuralRG, target: IsingDual, steps: int, batch: int = 256) -> None:
    """Minimise E_q[ln q - ln pi] >= -ln Z (Eqs. 3 to 5)."""
    optimizer = torch.optim.Adam(flow.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(steps):
        loss = -log_weights(flow, target, batch)[1].mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        optimizer.step()
        schedule.step()


def latent_hmc(
    flow: NeuralRG, target: IsingDual, draws: int, chains: int = 64, step: float = 0.2
) -> tuple[Tensor, float]:
    """HMC in the energy -ln [pi(g(z)) |det dg/dz|] (Eq. 6); fields ``(draws, chains, sites)``."""

    def energy_and_gradient(z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        x, ladj = flow.run(z, inverse=False)
        energy = target.energy(x) - ladj
        return energy.detach(), torch.autograd.grad(energy.sum(), z)[0]

    z, fields, accepted = torch.randn(chains, target.side**2), [], 0.0
    energy, gradient = energy_and_gradient(z)
    for _ in range(draws):
        momentum = torch.randn_like(z)
        before, end, slope = energy + 0.5 * momentum.square().sum(-1), z, gradient
        for _ in range(10):
            momentum = momentum - 0.5 * step * slope
            end = end + step * momentum
            after, slope = energy_and_gradient(end)
            momentum = momentum - 0.5 * step * slope
        kept = torch.rand(chains).log() < before - after - 0.5 * momentum.square().sum(-1)
        z, gradient = (torch.where(kept[:, None], *pair) for pair in ((end, z), (slope, gradient)))
        energy, accepted = torch.where(kept, after, energy), accepted + float(kept.float().mean())
        fields.append(flow.run(z, inverse=False)[0].detach())
    return torch.stack(fields), accepted / draws


def main() -> None:
    """Train, and print what is found beside what is exact."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=8, help="a power of two")
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()
    torch.manual_seed(0)
    target, flow = IsingDual(options.side), NeuralRG(options.side)
    train(flow, target, options.steps)
    with torch.no_grad():
        _, weights = log_weights(flow, target, 10_000)
    bound, error = -weights.mean(), weights.std() / math.sqrt(len(weights))
    print(f"exact free energy -ln Z      {-target.log_partition():.4f}")
    print(f"bound E_q[ln q - ln pi]      {bound:.4f} +- {error:.4f}")
    print(f"importance sampling          {math.log(len(weights)) - weights.logsumexp(0):.4f}")
    x, acceptance = latent_hmc(flow, target, 200)
    factor = target.spins(x[50:]).mean(-1).square()
    print(f"<(sum s)^2> / N^2, latent    {factor.mean():.4f}, {acceptance:.0%} accepted")


if __name__ == "__main__":
    main()
