"""How long one step of a sampler takes, as ratios within one run.

    python benchmarks/sampler_steps.py [--rounds 15]

One thread. One leapfrog with its gradient of a 1-16-1 tanh network with 60 points, for 1, 4, 16 and 64 chains computed
together; one step of SGLD on the same network with batches of 20; one step of SGLD on LeNet-300-100 with batches of 100
of 10,000 images, for 1 and 8 chains, beside a deterministic training step. Noise and minibatches are drawn in the
steps. Writes benchmarks/results/sampler_steps.json and .md.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from interleaved import Step, milliseconds, write
from torch import nn

from pyro_bnn import BayesianNet, likelihoods, priors
from pyro_bnn.mcmc.hamiltonian import HMC
from pyro_bnn.mcmc.langevin import SGLD
from pyro_bnn.mcmc.log_density import LogDensity
from pyro_bnn.mcmc.loop import minibatch
from pyro_bnn.mcmc.noise import Noise
from pyro_bnn.models import LeNet300100
from pyro_bnn.runtime.compile import compiled
from pyro_bnn.runtime.malloc import retain_freed_memory


def small() -> tuple[BayesianNet, tuple[torch.Tensor, torch.Tensor]]:
    net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    x = torch.cat([torch.linspace(-2, -1, 30), torch.linspace(1, 2, 30)])[:, None]
    return BayesianNet(net, {"*": priors.Normal()}, likelihoods.Gaussian(0.3), num_data=60), (
        x,
        torch.sin(2 * x[:, 0]),
    )


def large() -> tuple[BayesianNet, tuple[torch.Tensor, torch.Tensor]]:
    data = torch.rand(10_000, 784), torch.randint(10, (10_000,))
    return BayesianNet(
        LeNet300100(), {"*": priors.Normal(0.1)}, likelihoods.Categorical(), num_data=10_000
    ), data


def leapfrog(chains: int) -> Step:
    model, data = small()
    density, settings = LogDensity(model, data), HMC(warmup=0)
    position = 0.1 * torch.randn(chains, density.size)
    arguments = settings.example_arguments(position, data)
    function = compiled(settings.make_update(density.value_and_grad), arguments, "leapfrog")
    return lambda: function(*arguments)


def langevin(
    model: BayesianNet, data: tuple[torch.Tensor, torch.Tensor], chains: int, batch_size: int
) -> Step:
    """The step as the loop of the samplers takes it, its noise and its minibatch included."""
    density, settings = LogDensity(model, tuple(part[:batch_size] for part in data)), SGLD(1e-6)
    position = torch.stack([density.prior_draw() for _ in range(chains)])
    batch = tuple(
        part[:batch_size].expand(chains, batch_size, *part.shape[1:]).contiguous() for part in data
    )
    update = compiled(
        settings.make_update(density.value_and_grad_each),
        settings.example_arguments(position, batch),
        "an SGLD step",
    )
    noise = Noise(0, chains, density.size, position, batch_size, len(data[0]))
    holder: dict[str, Any] = {
        "state": settings.init(density.value_and_grad_each, update, position, batch), "number": 0,
    }  # fmt: skip

    def step() -> None:
        random = noise.next()
        batch = minibatch(data, random.examples)
        holder["state"], _ = settings.step(update, holder["state"], holder["number"], random, batch)
        holder["number"] += 1

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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    retain_freed_memory()  # as fit and the samplers do, for all rows
    torch.manual_seed(0)
    trajectories = milliseconds(
        {str(chains): leapfrog(chains) for chains in (1, 4, 16, 64)}, 200, rounds
    )
    little = milliseconds(
        {str(chains): langevin(*small(), chains, 20) for chains in (1, 8)}, 200, rounds
    )
    rows = {
        "deterministic, Adam": deterministic(torch.optim.Adam),
        "deterministic, SGD": deterministic(torch.optim.SGD),
    }
    rows |= {f"SGLD, {chains} chains": langevin(*large(), chains, 100) for chains in (1, 8)}
    much = milliseconds(rows, 10, rounds)
    lines = [
        "| one leapfrog, 1-16-1 net | microseconds | per chain | x one chain |",
        "|---|---|---|---|",
    ]
    for chains, ms in trajectories.items():
        each = 1e3 * ms / int(chains)
        lines.append(
            f"| HMC, {chains} chains | {1e3 * ms:.1f} | {each:.2f} | {ms / trajectories['1']:.2f} |"
        )
    lines += [
        "",
        "| one SGLD step, 1-16-1 net, batch 20 | microseconds | x one chain |",
        "|---|---|---|",
    ]
    lines += [
        f"| {chains} chains | {1e3 * ms:.1f} | {ms / little['1']:.2f} |"
        for chains, ms in little.items()
    ]
    lines += [
        "",
        "| one step, LeNet-300-100, batch 100 | ms | x deterministic, Adam | x one chain |",
        "|---|---|---|---|",
    ]
    base, one = much["deterministic, Adam"], much["SGLD, 1 chains"]
    for name, ms in much.items():
        share = f"{ms / one:.2f}" if name.startswith("SGLD") else ""
        lines.append(f"| {name} | {ms:.2f} | {ms / base:.2f} | {share} |")
    record = {"leapfrog_ms": trajectories, "sgld_small_ms": little, "sgld_lenet_ms": much}
    write("sampler_steps", record, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
