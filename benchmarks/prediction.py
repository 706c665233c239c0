"""How long predictions take, and how much memory, as ratios within one run.

    python benchmarks/prediction.py [--rounds 3]

One thread. LeNet-300-100 with a mean-field guide: 100 draws for 10,000 images, beside the bare matrix products of 100
such networks (5.3e11 operations), ``pyro.infer.Predictive`` and a naive ``vmap`` over all draws at once in pieces that
fit into memory; the peak of memory for 50, 100 and 200 draws. A 1-16-1 network: 1,000 draws at 200 points, beside
``Predictive``. Ours averages the predictive distributions and their entropies as well. Writes
benchmarks/results/prediction.json and .md.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from typing import Any

import pyro
import torch
from interleaved import Step, milliseconds, write
from pyro.infer import Predictive
from torch import nn

from pyro_bnn import BayesianNet, Posterior, likelihoods, priors
from pyro_bnn.guides import MeanField
from pyro_bnn.models import LeNet300100

IMAGES, DRAWS = 10_000, 100


def lenet() -> tuple[Posterior, torch.Tensor]:
    torch.manual_seed(0)
    model = BayesianNet(LeNet300100(), priors.Normal(), likelihoods.Categorical(), num_data=60_000)
    return Posterior.from_guide(model, MeanField(model)), torch.rand(IMAGES, 784)


def small() -> tuple[Posterior, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    model = BayesianNet(net, {"*": priors.Normal()}, likelihoods.Gaussian(0.3), num_data=60)
    return Posterior.from_guide(model, MeanField(model)), torch.linspace(-3, 3, 200)[:, None]


def products(x: torch.Tensor) -> Step:
    """The matrix products alone, of one network after another."""
    sizes = [(784, 300), (300, 100), (100, 10)]
    weights = [torch.randn(shape) for shape in sizes]
    hidden = [x, *(torch.empty(IMAGES, out) for _, out in sizes)]

    def step() -> None:
        for _ in range(DRAWS):
            for inputs, weight, outputs in zip(hidden[:-1], weights, hidden[1:], strict=True):
                torch.mm(inputs, weight, out=outputs)

    return step


def stock(posterior: Posterior, x: torch.Tensor, draws: int) -> Step:
    """Pyro's own: a sample of y for each draw, network after network."""
    predictive = Predictive(
        posterior.model, guide=posterior.guide, num_samples=draws, return_sites=("y",)
    )

    def step() -> None:
        with torch.no_grad(), pyro.validation_enabled(False):
            predictive(x)

    return step


def naive(posterior: Posterior, x: torch.Tensor) -> Step:
    """One vmap over all draws, in pieces of 500 images: 100 draws of all at once do not fit."""
    net = LeNet300100()

    def one(weights: dict[str, torch.Tensor], part: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(net, weights, (part,)).softmax(-1)

    def step() -> None:
        draws = {
            name: value
            for name, value in posterior.sample(DRAWS).items()
            if name.endswith("weight")
        }
        with torch.no_grad():
            torch.cat([torch.vmap(one, (0, None))(draws, part).mean(0) for part in x.split(500)])

    return step


def peak(draws: int) -> float:
    """Return the peak of memory in MiB of a process that predicts with so many draws."""
    done = subprocess.run(
        [sys.executable, __file__, "--peak", str(draws)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    posterior, x = lenet()
    if arguments.peak:
        posterior.predict(x, draws=arguments.peak)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    rows = {
        "bare matrix products": products(x),
        "PyroBNN, posterior.predict": lambda: posterior.predict(x, draws=DRAWS),
        "pyro.infer.Predictive": stock(posterior, x, DRAWS),
        "one naive vmap": naive(posterior, x),
    }
    large = milliseconds(rows, 1, arguments.rounds)
    few, at = small()
    rows = {
        "PyroBNN, posterior.predict": lambda: few.predict(at, draws=1000),
        "pyro.infer.Predictive": stock(few, at, 1000),
    }
    little = milliseconds(
        rows, {"PyroBNN, posterior.predict": 20, "pyro.infer.Predictive": 1}, arguments.rounds
    )
    memory: dict[str, Any] = {str(draws): peak(draws) for draws in (50, 100, 200)}
    lines = [
        "| LeNet-300-100, 100 draws, 10,000 images | seconds | x bare products |",
        "|---|---|---|",
    ]
    base = large["bare matrix products"]
    lines += [f"| {name} | {ms / 1e3:.2f} | {ms / base:.2f} |" for name, ms in large.items()]
    lines += [
        "",
        "| 1-16-1 net, 1,000 draws, 200 points | ms | times faster than Predictive |",
        "|---|---|---|",
    ]
    slow = little["pyro.infer.Predictive"]
    lines += [f"| {name} | {ms:.1f} | {slow / ms:.1f} |" for name, ms in little.items()]
    lines += [
        "",
        "| draws | peak of memory, MiB |",
        "|---|---|",
        *(f"| {d} | {m:.0f} |" for d, m in memory.items()),
    ]
    record = {"lenet_ms": large, "small_ms": little, "peak_mib": memory}
    write("prediction", record, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
