"""The time of one training step, as ratios within one run.

    python benchmarks/svi_step.py [--rounds 15]

Three networks, each with one batch, on one thread:

- LeNet-300-100, batch 100, Sparse VD: the deterministic torch step; a hand-written eager one (local
  reparameterization, published KL approximation, clip and mask); stock Pyro, ``SVI`` with
  ``Trace_ELBO`` and sampled weights; PyroBNN, eager and compiled, with the exact KL (the default)
  and, eager, with the approximate one.
- LeNet-5, batch 100, mean field with local reparameterization: the deterministic step, PyroBNN
  eager and compiled.
- A 1-16-1 tanh network on 60 points, mean field: stock ``SVI`` with an ``AutoNormal`` guide,
  PyroBNN eager and compiled.

The rounds of all rows are interleaved and the median is reported, so that a busy machine disturbs
them alike. Writes benchmarks/results/svi_step.json and .md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from interleaved import Step, argument_parser, milliseconds, write_results
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pyro_bnn import ELBO, BayesianNet, distributions, likelihoods, local_reparameterization, priors
from pyro_bnn.guides import MeanField, SparseVariationalDropout
from pyro_bnn.models import LeNet5, LeNet300100, lenet_5, lenet_300_100
from pyro_bnn.runtime.malloc import retain_freed_memory
from pyro_bnn.runtime.text_table import format_markdown_table
from pyro_bnn.training.steps import CompiledStep, PlainStep

BATCH, NUM_DATA = 100, 60_000
HAND_WRITTEN = "hand-written Sparse VD, eager torch"


def images(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(BATCH, 784, device=device), torch.randint(10, (BATCH,), device=device)


def deterministic(network: type[nn.Module], device: str) -> Step:
    net = network().to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    x, y = images(device)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


def hand_written(device: str) -> Step:
    """The Sparse VD step written in plain torch."""
    sizes = [(784, 300), (300, 100), (100, 10)]
    theta = [nn.Parameter(0.01 * torch.randn(o, i, device=device)) for i, o in sizes]
    log_variance = [nn.Parameter(torch.full((o, i), -10.0, device=device)) for i, o in sizes]
    bias = [nn.Parameter(torch.zeros(o, device=device)) for _, o in sizes]
    optimizer = torch.optim.Adam([*theta, *log_variance, *bias], lr=1e-3)
    x, y = images(device)

    def step() -> None:
        optimizer.zero_grad()
        h, kl = x, torch.zeros((), device=device)
        for layer, (w, lv, b) in enumerate(zip(theta, log_variance, bias, strict=True)):
            log_alpha = (lv - torch.log(w * w + 1e-8)).clamp(-8, 8)
            mean = F.linear(h, w * (log_alpha < 3), b)
            variance = F.linear(h * h, torch.exp(log_alpha) * w * w)
            h = mean + torch.sqrt(variance + 1e-8) * torch.randn_like(mean)
            if layer < 2:
                h = F.relu(h)
            sigmoid = torch.sigmoid(-1.8732 - 1.48695 * log_alpha)
            kl = kl + (0.5 * F.softplus(-log_alpha) + 0.63576 * sigmoid).sum()
        loss = NUM_DATA / BATCH * F.cross_entropy(h, y, reduction="sum") + kl
        loss.backward()
        optimizer.step()

    return step


def stock_sparse(device: str) -> Step:
    """The same posterior in stock Pyro: weights are sampled, log-densities evaluated.

    The prior is a standard normal. The log-uniform one costs as much, but sometimes evaluates the
    logarithm of a weight that was rounded to zero.
    """
    pyro.clear_param_store()
    sizes = [(300, 784), (100, 300), (10, 100)]
    x, y = images(device)

    def model(x: torch.Tensor, y: torch.Tensor) -> None:
        h = x
        for layer, (o, i) in enumerate(sizes):
            w = pyro.sample(f"w{layer}", dist.Normal(0.0, 1.0).expand([o, i]).to_event(2))
            b = pyro.param(f"b{layer}", torch.zeros(o, device=device))
            h = F.linear(h, w, b)
            if layer < 2:
                h = F.relu(h)
        with pyro.plate("data", NUM_DATA, subsample=range(len(x))):
            pyro.sample("y", dist.Categorical(logits=h), obs=y)

    def guide(x: torch.Tensor, y: torch.Tensor) -> None:
        for layer, (o, i) in enumerate(sizes):
            loc = pyro.param(
                f"loc{layer}", lambda o=o, i=i: 0.01 * torch.randn(o, i, device=device)
            )
            log_scale = pyro.param(
                f"log_scale{layer}", lambda o=o, i=i: torch.full((o, i), -5.0, device=device)
            )
            pyro.sample(f"w{layer}", dist.Normal(loc, log_scale.exp()).to_event(2))

    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())
    return lambda: svi.step(x, y)


def ours(
    model: BayesianNet, guide: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], compile: bool
) -> Step:
    """The step as ``fit`` takes it."""
    device = batch[0].device
    loss = ELBO(model.to(device), local_reparameterization(guide)).to(device)
    plain = PlainStep(loss, torch.optim.Adam(loss.parameters(), lr=1e-3), num_particles=1)
    plain(batch, 1e-3, 1.0)
    take = CompiledStep(plain) if compile else plain

    def step() -> None:
        with pyro.validation_enabled(False):  # as in fit, which validates the first step alone
            take(batch, 1e-3, 1.0)

    return step


def sparse(device: str, kl: Callable[[torch.Tensor], torch.Tensor], compile: bool = False) -> Step:
    model = lenet_300_100(NUM_DATA, prior=priors.LogUniform(kl=kl))
    return ours(model, SparseVariationalDropout(model), images(device), compile)


def convolutional(device: str, compile: bool) -> Step:
    model = lenet_5(NUM_DATA, prior=priors.Normal(0.1))
    return ours(model, MeanField(model), images(device), compile)


def small(device: str) -> tuple[BayesianNet, tuple[torch.Tensor, torch.Tensor]]:
    net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    x = torch.linspace(-2, 2, 60, device=device)[:, None]
    model = BayesianNet(net, {"*": priors.Normal()}, likelihoods.Gaussian(0.3), num_data=60)
    return model.to(device), (x, torch.sin(2 * x[:, 0]))


def stock_small(device: str) -> Step:
    pyro.clear_param_store()
    model, batch = small(device)
    svi = pyro.infer.SVI(
        model, AutoNormal(model), pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO()
    )
    return lambda: svi.step(*batch)


def ours_small(device: str, compile: bool) -> Step:
    model, batch = small(device)
    return ours(model, MeanField(model), batch, compile)


TABLES: dict[str, dict[str, Callable[[str], Step]]] = {
    "LeNet-300-100, Sparse VD, batch 100": {
        "deterministic torch": partial(deterministic, LeNet300100),
        HAND_WRITTEN: hand_written,
        "stock Pyro, sampled weights": stock_sparse,
        "PyroBNN, eager, exact KL (default)": partial(sparse, kl=distributions.kl_log_uniform),
        "PyroBNN, eager, approximate KL": partial(
            sparse, kl=distributions.kl_log_uniform_approximate
        ),
        "PyroBNN, compiled, exact KL (default)": partial(
            sparse, kl=distributions.kl_log_uniform, compile=True
        ),
    },
    "LeNet-5, mean field, batch 100": {
        "deterministic torch": partial(deterministic, LeNet5),
        "PyroBNN, eager": partial(convolutional, compile=False),
        "PyroBNN, compiled": partial(convolutional, compile=True),
    },
    "1-16-1 regression net, mean field, 60 points": {
        "stock Pyro SVI, AutoNormal": stock_small,
        "PyroBNN, eager": partial(ours_small, compile=False),
        "PyroBNN, compiled": partial(ours_small, compile=True),
    },
}
STEPS = dict(zip(TABLES, (30, 5, 100), strict=True))


def measure(device: str, rounds: int) -> dict[str, dict[str, float]]:
    """Return milliseconds per step of every row of every table."""
    times = {}
    for name, builders in TABLES.items():
        torch.manual_seed(0)
        steps = {row: build(device) for row, build in builders.items()}
        times[name] = milliseconds(steps, STEPS[name], rounds)
    return times


def tables(cpu: dict[str, dict[str, float]], gpu: dict[str, dict[str, float]]) -> str:
    """Return one Markdown table per network, with ratios to its first row.

    If there is a hand-written row, there are also ratios to it.
    """
    blocks = []
    for name, times in cpu.items():
        references = [next(iter(times))]
        if HAND_WRITTEN in times:
            references.append(HAND_WRITTEN)
        header = [f"one step: {name}", "CPU, 1 thread"]
        header += [f"x {reference}" for reference in references]
        header.append("GPU")
        rows = []
        for row, ms in times.items():
            cells = [row, f"{ms:.3g} ms"]
            cells += [f"{ms / times[reference]:.3g}" for reference in references]
            cells.append(f"{gpu[name][row]:.3g} ms" if gpu else "no GPU")
            rows.append(cells)
        blocks.append(format_markdown_table(header, rows, align="l" * len(header)) + "\n")
    return "\n".join(blocks)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    retain_freed_memory()  # as fit and the samplers do, for all rows
    cpu, gpu = measure("cpu", arguments.rounds), {}
    if torch.cuda.is_available():
        gpu = measure("cuda", arguments.rounds)
    write_results("svi_step", {"cpu_ms": cpu, "gpu_ms": gpu or "no GPU"}, tables(cpu, gpu))


if __name__ == "__main__":
    main()
