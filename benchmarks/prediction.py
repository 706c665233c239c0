"""Time and memory of predictions, as ratios within one run.

    python benchmarks/prediction.py [--rounds 3]

One thread. LeNet-300-100 with a mean-field guide: 100 draws for 10,000 images, beside the bare
matrix products of 100 such networks (5.3e11 operations), ``pyro.infer.Predictive``, and a plain
``vmap`` over all draws in batches of images that fit into memory; the peak memory for 50, 100 and
200 draws. A 1-16-1 network: 1,000 draws at 200 points, beside ``Predictive``. PyroBNN also averages
the predictive distributions and their entropies. Writes benchmarks/results/prediction.json and .md.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from typing import NamedTuple

import pyro
import torch
from interleaved import Step, argument_parser, milliseconds, write_results
from pyro.infer import Predictive
from torch import Tensor, nn

from pyro_bnn import BayesianNet, Posterior, likelihoods, priors
from pyro_bnn.guides import MeanField
from pyro_bnn.models import LeNet300100
from pyro_bnn.runtime.text_table import format_markdown_table

IMAGES, DRAWS = 10_000, 100
OURS, STOCK, PRODUCTS = (
    "PyroBNN, posterior.predict",
    "pyro.infer.Predictive",
    "bare matrix products",
)


class Problem(NamedTuple):
    """A posterior, and the inputs of its predictions."""

    posterior: Posterior
    x: Tensor


def lenet() -> Problem:
    torch.manual_seed(0)
    model = BayesianNet(LeNet300100(), priors.Normal(), likelihoods.Categorical(), num_data=60_000)
    return Problem(Posterior.from_guide(model, MeanField(model)), torch.rand(IMAGES, 784))


def regression() -> Problem:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    model = BayesianNet(net, {"*": priors.Normal()}, likelihoods.Gaussian(0.3), num_data=60)
    x = torch.linspace(-3, 3, 200)[:, None]
    return Problem(Posterior.from_guide(model, MeanField(model)), x)


def ours(problem: Problem, draws: int) -> Step:
    return lambda: problem.posterior.predict(problem.x, draws=draws)


def products(x: Tensor) -> Step:
    """The matrix products alone, of one network after another."""
    weights = [torch.randn(784, 300), torch.randn(300, 100), torch.randn(100, 10)]
    outputs = [torch.empty(IMAGES, weight.shape[1]) for weight in weights]

    def step() -> None:
        for _ in range(DRAWS):
            inputs = x
            for weight, output in zip(weights, outputs, strict=True):
                torch.mm(inputs, weight, out=output)
                inputs = output

    return step


def stock(problem: Problem, draws: int) -> Step:
    """Stock Pyro: a sample of y for each draw, network after network."""
    posterior, x = problem
    predictive = Predictive(
        posterior.model, guide=posterior.guide, num_samples=draws, return_sites=("y",)
    )

    def step() -> None:
        with torch.no_grad(), pyro.validation_enabled(False):
            predictive(x)

    return step


def plain_vmap(problem: Problem) -> Step:
    """One vmap over all draws, in batches of 500 images: 100 draws of all do not fit."""
    net = LeNet300100()

    def probabilities(weights: dict[str, Tensor], images: Tensor) -> Tensor:
        scores: Tensor = torch.func.functional_call(net, weights, (images,))
        return scores.softmax(-1)

    over_draws = torch.vmap(probabilities, (0, None))

    def step() -> None:
        weights = {}
        for name, value in problem.posterior.sample(DRAWS).items():
            if name.endswith("weight"):
                weights[name] = value
        means = []
        with torch.no_grad():
            for images in torch.split(problem.x, 500):
                means.append(over_draws(weights, images).mean(0))
            torch.cat(means)

    return step


def peak_memory(draws: int) -> float:
    """Return the peak memory in MiB of a process that predicts with this number of draws."""
    command = [sys.executable, __file__, "--peak", str(draws)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def table(large: dict[str, float], small: dict[str, float], memory: dict[str, float]) -> str:
    """Return the three tables."""
    large_rows, small_rows, memory_rows = [], [], []
    for name, ms in large.items():
        large_rows.append((name, f"{ms / 1e3:.2f}", f"{ms / large[PRODUCTS]:.2f}"))
    for name, ms in small.items():
        small_rows.append((name, f"{ms:.1f}", f"{small[STOCK] / ms:.1f}"))
    for draws, mib in memory.items():
        memory_rows.append((draws, f"{mib:.0f}"))
    header = ("LeNet-300-100, 100 draws, 10,000 images", "seconds", "x bare products")
    tables = [format_markdown_table(header, large_rows, align="lll")]
    header = ("1-16-1 net, 1,000 draws, 200 points", "ms", "times faster than Predictive")
    tables.append(format_markdown_table(header, small_rows, align="lll"))
    tables.append(format_markdown_table(("draws", "peak of memory, MiB"), memory_rows, align="ll"))
    return "\n\n".join(tables) + "\n"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", type=int, help="predict once and print the peak memory in MiB")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    classes = lenet()
    if arguments.peak:
        classes.posterior.predict(classes.x, draws=arguments.peak)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    rows = {
        PRODUCTS: products(classes.x),
        OURS: ours(classes, DRAWS),
        STOCK: stock(classes, DRAWS),
        "one naive vmap": plain_vmap(classes),
    }
    large = milliseconds(rows, 1, arguments.rounds)
    line = regression()
    rows = {OURS: ours(line, 1000), STOCK: stock(line, 1000)}
    small = milliseconds(rows, {OURS: 20, STOCK: 1}, arguments.rounds)
    memory = {str(draws): peak_memory(draws) for draws in (50, 100, 200)}
    record = {"lenet_ms": large, "small_ms": small, "peak_mib": memory}
    write_results("prediction", record, table(large, small, memory))


if __name__ == "__main__":
    main()
