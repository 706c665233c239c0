"""How long one training step of a sparse LeNet-300-100 takes, as ratios within one run.

    python benchmarks/svi_step.py [--steps 40] [--rounds 15]

Rows, all on 784-300-100-10 with a batch of 100 and one thread: the deterministic torch step; a hand-written eager
Sparse VD step (local reparameterization, published KL approximation, clip and mask); stock Pyro, ``SVI`` with
``Trace_ELBO`` and sampled weights under the same log-uniform prior; ours, eager, with the exact KL (the default) and
with the approximate one. The rounds of all rows are interleaved and the median is reported, so that a busy machine
disturbs them alike. Writes benchmarks/results/svi_step.json and .md.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import nn

from pyro_bnn import ELBO, distributions, local_reparameterization, priors
from pyro_bnn.guides import SparseVariationalDropout
from pyro_bnn.models import LeNet300100, lenet_300_100

BATCH, NUM_DATA = 100, 60_000
Step = Callable[[], None]


def batch(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(BATCH, 784, device=device), torch.randint(10, (BATCH,), device=device)


def deterministic(device: str) -> Step:
    net = LeNet300100().to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    x, y = batch(device)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


def hand_written(device: str) -> Step:
    """The Sparse VD step as one writes it in plain torch."""
    sizes = [(784, 300), (300, 100), (100, 10)]
    theta = [nn.Parameter(0.01 * torch.randn(o, i, device=device)) for i, o in sizes]
    log_variance = [nn.Parameter(torch.full((o, i), -10.0, device=device)) for i, o in sizes]
    bias = [nn.Parameter(torch.zeros(o, device=device)) for _, o in sizes]
    optimizer = torch.optim.Adam([*theta, *log_variance, *bias], lr=1e-3)
    x, y = batch(device)

    def step() -> None:
        optimizer.zero_grad()
        h, kl = x, torch.zeros((), device=device)
        for layer, (w, lv, b) in enumerate(zip(theta, log_variance, bias, strict=True)):
            log_alpha = (lv - torch.log(w * w + 1e-8)).clamp(-8, 8)
            mean = F.linear(h, w * (log_alpha < 3), b)
            variance = F.linear(h * h, torch.exp(log_alpha) * w * w)
            h = mean + torch.sqrt(variance + 1e-8) * torch.randn_like(mean)
            h = F.relu(h) if layer < 2 else h
            kl = kl + (0.5 * F.softplus(-log_alpha) + 0.63576 * torch.sigmoid(-1.8732 - 1.48695 * log_alpha)).sum()
        loss = NUM_DATA / BATCH * F.cross_entropy(h, y, reduction="sum") + kl
        loss.backward()
        optimizer.step()

    return step


def stock_pyro(device: str) -> Step:
    """The same posterior in stock Pyro: weights are sampled, log-densities evaluated."""
    pyro.clear_param_store()
    sizes = [(300, 784), (100, 300), (10, 100)]
    x, y = batch(device)

    def model(x: torch.Tensor, y: torch.Tensor) -> None:
        h = x
        for layer, (o, i) in enumerate(sizes):
            w = pyro.sample(f"w{layer}", distributions.LogUniform().expand([o, i]).to_event(2))
            b = pyro.param(f"b{layer}", torch.zeros(o, device=device))
            h = F.linear(h, w, b)
            h = F.relu(h) if layer < 2 else h
        with pyro.plate("data", NUM_DATA, subsample=range(len(x))):
            pyro.sample("y", dist.Categorical(logits=h), obs=y)

    def guide(x: torch.Tensor, y: torch.Tensor) -> None:
        for layer, (o, i) in enumerate(sizes):
            loc = pyro.param(f"loc{layer}", lambda o=o, i=i: 0.01 * torch.randn(o, i, device=device))
            log_scale = pyro.param(f"log_scale{layer}", lambda o=o, i=i: torch.full((o, i), -5.0, device=device))
            pyro.sample(f"w{layer}", dist.Normal(loc, log_scale.exp()).to_event(2))

    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())
    return lambda: svi.step(x, y)


def ours(device: str, kl: Callable[[torch.Tensor], torch.Tensor]) -> Step:
    model = lenet_300_100(NUM_DATA, prior=priors.LogUniform(kl=kl)).to(device)
    loss = ELBO(model, local_reparameterization(SparseVariationalDropout(model))).to(device)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    x, y = batch(device)

    def step() -> None:
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()

    def without_validation() -> None:  # as in fit: what is built wrong was said at the first step
        with pyro.validation_enabled(False):
            step()

    step()
    return without_validation


ROWS: dict[str, Callable[[str], Step]] = {
    "deterministic torch": deterministic,
    "hand-written Sparse VD, eager torch": hand_written,
    "stock Pyro, sampled weights": stock_pyro,
    "PyroBNN, eager, exact KL (default)": lambda device: ours(device, distributions.kl_log_uniform),
    "PyroBNN, eager, approximate KL": lambda device: ours(device, distributions.kl_log_uniform_approximate),
}


def measure(device: str, steps: int, rounds: int) -> dict[str, float]:
    """Return the median milliseconds of a step for each row."""
    torch.manual_seed(0)
    rows = {name: build(device) for name, build in ROWS.items()}
    times: dict[str, list[float]] = {name: [] for name in rows}
    for round_number in range(rounds + 1):
        for name, step in rows.items():
            started = time.perf_counter()
            for _ in range(steps):
                step()
            if device == "cuda":
                torch.cuda.synchronize()
            if round_number:  # the first round warms up
                times[name].append((time.perf_counter() - started) / steps * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cpu = measure("cpu", arguments.steps, arguments.rounds)
    gpu = measure("cuda", arguments.steps, arguments.rounds) if torch.cuda.is_available() else {}
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    facts = {"torch": torch.__version__, "pyro": pyro.__version__, "python": platform.python_version()}
    record = {"cpu_ms": cpu, "gpu_ms": gpu or "no GPU", **facts}
    (results / "svi_step.json").write_text(json.dumps(record, indent=1) + "\n")
    (results / "svi_step.md").write_text(table(cpu, gpu))
    print(table(cpu, gpu))


def table(cpu: dict[str, float], gpu: dict[str, float]) -> str:
    base, hand = cpu["deterministic torch"], cpu["hand-written Sparse VD, eager torch"]
    lines = [
        f"| one step, LeNet-300-100, batch {BATCH} | CPU, 1 thread | x deterministic | x hand-written | GPU |",
        "|---|---|---|---|---|",
    ]
    for name, ms in cpu.items():
        on_gpu = f"{gpu[name]:.2f} ms" if gpu else "no GPU"
        lines.append(f"| {name} | {ms:.2f} ms | {ms / base:.2f} | {ms / hand:.2f} | {on_gpu} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
