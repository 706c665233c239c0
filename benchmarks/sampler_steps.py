"""The time of one step of a sampler, as ratios within one run.

    python benchmarks/sampler_steps.py [--rounds 15]

One thread. One leapfrog with its gradient of a 1-16-1 tanh network with 60 points, for 1, 4, 16 and
64 chains computed together; one step of SGLD on the same network with batches of 20; one step of
SGLD on LeNet-300-100 with batches of 100 of 10,000 images, for 1 and 8 chains, beside a
deterministic training step. The steps include the draws of noise and minibatches. Writes
benchmarks/results/sampler_steps.json and .md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from interleaved import Step, argument_parser, milliseconds, write_results
from torch import Tensor, nn

from pyro_bnn import BayesianNet, likelihoods, priors
from pyro_bnn.mcmc.hamiltonian import HMC
from pyro_bnn.mcmc.langevin import SGLD
from pyro_bnn.mcmc.log_density import LogDensity
from pyro_bnn.mcmc.loop import minibatch
from pyro_bnn.mcmc.noise import Noise
from pyro_bnn.models import LeNet300100
from pyro_bnn.runtime.compile import compiled
from pyro_bnn.runtime.malloc import retain_freed_memory
from pyro_bnn.runtime.text_table import format_markdown_table

ADAM, SGD = "deterministic, Adam", "deterministic, SGD"


class Problem(NamedTuple):
    """A model and its data."""

    model: BayesianNet
    data: tuple[Tensor, Tensor]


def regression() -> Problem:
    net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    x = torch.cat([torch.linspace(-2, -1, 30), torch.linspace(1, 2, 30)])[:, None]
    model = BayesianNet(net, {"*": priors.Normal()}, likelihoods.Gaussian(0.3), num_data=60)
    return Problem(model, (x, torch.sin(2 * x[:, 0])))


def lenet() -> Problem:
    model = BayesianNet(
        LeNet300100(), {"*": priors.Normal(0.1)}, likelihoods.Categorical(), num_data=10_000
    )
    return Problem(model, (torch.rand(10_000, 784), torch.randint(10, (10_000,))))


def leapfrog(chains: int) -> Step:
    model, data = regression()
    density, settings = LogDensity(model, data), HMC(warmup=0)
    position = 0.1 * torch.randn(chains, density.size)
    arguments = settings.example_arguments(position, data)
    function = compiled(settings.make_update(density.value_and_grad), arguments, "leapfrog")
    return lambda: function(*arguments)


def langevin(problem: Problem, chains: int, batch_size: int) -> Step:
    """A step as the loop of the samplers takes it, with its noise and its minibatch."""
    x, y = problem.data
    first = x[:batch_size], y[:batch_size]
    density, settings = LogDensity(problem.model, first), SGLD(1e-6)
    position = torch.stack([density.prior_draw() for _ in range(chains)])
    noise = Noise(0, chains, density.size, position, batch_size, len(x))
    batch = minibatch(problem.data, torch.arange(batch_size).expand(chains, -1))
    value_and_grad = density.value_and_grad_each
    update = compiled(
        settings.make_update(value_and_grad),
        settings.example_arguments(position, batch),
        "an SGLD step",
    )
    state = settings.init(value_and_grad, update, position, batch)
    number = 0

    def step() -> None:
        nonlocal state, number
        random = noise.next()
        state, _ = settings.step(
            update, state, number, random, minibatch(problem.data, random.examples)
        )
        number += 1

    return step


def deterministic(optimizer_class: type[torch.optim.Optimizer]) -> Step:
    net = LeNet300100()
    optimizer = optimizer_class(net.parameters(), lr=1e-3)  # type: ignore[call-arg]
    x, y = torch.rand(10_000, 784), torch.randint(10, (10_000,))

    def step() -> None:
        index = torch.randint(10_000, (100,))
        optimizer.zero_grad()
        F.cross_entropy(net(x[index]), y[index]).backward()
        optimizer.step()

    return step


def leapfrog_table(times: Mapping[str, float]) -> str:
    rows = []
    for chains, ms in times.items():
        microseconds = 1e3 * ms
        rows.append(
            (
                f"HMC, {chains} chains",
                f"{microseconds:.1f}",
                f"{microseconds / int(chains):.2f}",
                f"{ms / times['1']:.2f}",
            )
        )
    header = ("one leapfrog, 1-16-1 net", "microseconds", "per chain", "x one chain")
    return format_markdown_table(header, rows, align="llll")


def small_table(times: Mapping[str, float]) -> str:
    rows = []
    for chains, ms in times.items():
        rows.append((f"{chains} chains", f"{1e3 * ms:.1f}", f"{ms / times['1']:.2f}"))
    header = ("one SGLD step, 1-16-1 net, batch 20", "microseconds", "x one chain")
    return format_markdown_table(header, rows, align="lll")


def lenet_table(times: Mapping[str, float]) -> str:
    rows = []
    for name, ms in times.items():
        per_chain = ""
        if name.startswith("SGLD"):
            per_chain = f"{ms / times['SGLD, 1 chains']:.2f}"
        rows.append((name, f"{ms:.2f}", f"{ms / times[ADAM]:.2f}", per_chain))
    header = (
        "one step, LeNet-300-100, batch 100",
        "ms",
        "x deterministic, Adam",
        "x one chain",
    )
    return format_markdown_table(header, rows, align="llll")


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    retain_freed_memory()  # as fit and the samplers do, for all rows
    torch.manual_seed(0)
    leapfrogs = {str(chains): leapfrog(chains) for chains in (1, 4, 16, 64)}
    leapfrog_ms = milliseconds(leapfrogs, 200, rounds)
    small = {str(chains): langevin(regression(), chains, 20) for chains in (1, 8)}
    small_ms = milliseconds(small, 200, rounds)
    large = {
        ADAM: deterministic(torch.optim.Adam),
        SGD: deterministic(torch.optim.SGD),
        "SGLD, 1 chains": langevin(lenet(), 1, 100),
        "SGLD, 8 chains": langevin(lenet(), 8, 100),
    }
    large_ms = milliseconds(large, 10, rounds)
    tables = (leapfrog_table(leapfrog_ms), small_table(small_ms), lenet_table(large_ms))
    record = {"leapfrog_ms": leapfrog_ms, "sgld_small_ms": small_ms, "sgld_lenet_ms": large_ms}
    write_results("sampler_steps", record, "\n\n".join(tables) + "\n")


if __name__ == "__main__":
    main()
