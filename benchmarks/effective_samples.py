"""Effective draws per second of HMC and NUTS on one small network, compilation included.

    pip install "pyro-bnn[nuts]" numpyro
    python benchmarks/effective_samples.py [--draws 1000]

The network is 1-16-1 with tanh (49 weights), standard normal priors, known noise 0.3, 60 points in
two clusters. The score is the smallest bulk ESS over the *function values* at 20 inputs, divided by
the seconds from the call to the last draw, with compilation and warm-up. Each method runs in a
process of its own, on one core. Both compilers start without a compiled graph of this program; what
inductor builds once for a machine (precompiled headers) is built before the clock starts, and its
time is reported. Pyro's NUTS runs for few draws and is extrapolated: its seconds per gradient times
the gradients per effective draw of NumPyro's. Writes benchmarks/results/effective_samples.json and
.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import numpy as np

Record = dict[str, float]
WARMUP, NOISE, HIDDEN, DEPTH = 200, 0.3, 16, 8


class Problem(NamedTuple):
    """Training data x (60, 1), y (60,), and inputs at which functions are compared, (20, 1)."""

    x: np.ndarray
    y: np.ndarray
    at: np.ndarray


def problem() -> Problem:
    generator = np.random.default_rng(0)
    left, right = generator.uniform(-2, -1, 30), generator.uniform(1, 2, 30)
    x = np.concatenate([left, right])[:, None].astype("float32")
    y = (np.sin(2 * x[:, 0]) + NOISE * generator.standard_normal(60)).astype("float32")
    return Problem(x, y, np.linspace(-3, 3, 20, dtype="float32")[:, None])


def run_pyro_bnn(method: str, chains: int, draws: int) -> Record:
    """Run a sampler of PyroBNN, or Pyro's NUTS."""
    import torch
    from torch import nn

    from pyro_bnn import BayesianNet, likelihoods, mcmc, priors
    from pyro_bnn.runtime.compile import compiled

    torch.set_num_threads(1)
    started = time.perf_counter()
    compiled(lambda a: (a.sin() @ a,), [torch.ones(3, 3)], "a first graph")
    once = time.perf_counter() - started
    x, y, at = map(torch.from_numpy, problem())
    net = nn.Sequential(nn.Linear(1, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1))
    model = BayesianNet(net, {"*": priors.Normal()}, likelihoods.Gaussian(NOISE), num_data=60)
    data = x, y
    started = time.perf_counter()
    if method == "hmc":
        posterior = mcmc.hmc(model, data, chains=chains, warmup=WARMUP, draws=draws, progress=False)
    elif method == "nutpie":
        posterior = mcmc.nuts(
            model,
            data,
            backend="nutpie",
            max_tree_depth=DEPTH,
            chains=chains,
            warmup=WARMUP,
            draws=draws,
            progress=False,
        )
    else:
        posterior = mcmc.nuts(
            model, data, max_tree_depth=DEPTH, chains=chains, warmup=15, draws=15, progress=False
        )
    seconds = time.perf_counter() - started
    values = posterior.functions(at)["mean"].numpy()
    return measured(values, seconds, posterior.facts["gradients"]) | {"once": once}


def run_numpyro(chains: int, draws: int) -> Record:
    """Run NumPyro's NUTS, all chains vectorized."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import MCMC, NUTS

    x, y, at = problem()

    def forward(w: dict[str, Any], x: Any) -> Any:
        return (jnp.tanh(x @ w["w1"] + w["b1"]) @ w["w2"])[..., 0] + w["b2"]

    def program(x: Any, y: Any) -> None:
        shapes = {"w1": (1, HIDDEN), "b1": (HIDDEN,), "w2": (HIDDEN, 1), "b2": ()}
        w = {}
        for name, shape in shapes.items():
            prior = dist.Normal(jnp.zeros(shape), 1.0).to_event(len(shape))
            w[name] = numpyro.sample(name, prior)
        numpyro.sample("y", dist.Normal(forward(w, x), NOISE), obs=y)

    kernel = NUTS(program, max_tree_depth=DEPTH)
    run = MCMC(
        kernel,
        num_warmup=WARMUP,
        num_samples=draws,
        num_chains=chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    started = time.perf_counter()
    run.warmup(jax.random.PRNGKey(0), x, y, extra_fields=("num_steps",), collect_warmup=True)
    gradients = int(run.get_extra_fields()["num_steps"].sum())
    run.run(run.post_warmup_state.rng_key, x, y, extra_fields=("num_steps",))
    weights = run.get_samples(group_by_chain=True)
    jax.block_until_ready(weights)
    seconds = time.perf_counter() - started
    gradients += int(run.get_extra_fields()["num_steps"].sum())
    values = jax.vmap(jax.vmap(lambda w: forward(w, at)))(weights)
    return measured(np.asarray(values), seconds, gradients)


def measured(values: np.ndarray, seconds: float, gradients: int) -> Record:
    """Return the record of a run, computed from its function values (chain, draw, 20)."""
    import arviz as az

    ess, r_hat = [], []
    for point in range(values.shape[2]):
        chains = values[:, :, point].astype("float64")
        ess.append(float(az.ess(chains)))
        if len(chains) > 1:
            r_hat.append(float(az.rhat(chains)))
    return {
        "ess": min(ess),
        "r_hat": max(r_hat, default=float("nan")),
        "seconds": seconds,
        "gradients": gradients,
        "draws": values.shape[1],
    }


NUMPYRO = "NumPyro NUTS, 4 vectorized chains"
STOCK = "Pyro NUTS, 1 chain (15 + 15, extrapolated)"
RUNS = {
    "PyroBNN HMC, 16 chains": ("hmc", 16),
    "PyroBNN HMC, 4 chains": ("hmc", 4),
    "PyroBNN model in nutpie's NUTS, 4 chains": ("nutpie", 4),
    NUMPYRO: ("numpyro", 4),
    "NumPyro NUTS, 16 vectorized chains": ("numpyro", 16),
    STOCK: ("pyro", 1),
}


def alone(name: str, draws: int) -> Record:
    """Run one method in a process of its own, on one core, with empty caches of compiled graphs."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            "TORCHINDUCTOR_CACHE_DIR": cache,
            "OMP_NUM_THREADS": "1",
            "JAX_PLATFORMS": "cpu",
        }
        command = [sys.executable, "-W", "ignore", __file__, "--run", name, "--draws", str(draws)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    record: Record = json.loads(done.stdout.splitlines()[-1])
    return record


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--run", choices=list(RUNS), help="run one method in this process")
    arguments = parser.parse_args()
    if arguments.run:
        os.sched_setaffinity(0, {0})
        print(json.dumps(run(arguments.run, arguments.draws)))
        return
    from interleaved import write_results

    records = {}
    for name in RUNS:
        records[name] = alone(name, arguments.draws)
        print(name, records[name], flush=True)
    add_rates(records)
    write_results("effective_samples", records, table(records))


def run(name: str, draws: int) -> Record:
    """Run one method and return its record."""
    method, chains = RUNS[name]
    if method == "numpyro":
        return run_numpyro(chains, draws)
    return run_pyro_bnn(method, chains, draws)


def add_rates(records: dict[str, Record]) -> None:
    """Add the effective draws per second; those of Pyro's NUTS are extrapolated."""
    for record in records.values():
        record["rate"] = record["ess"] / record["seconds"]
    reference, stock = records[NUMPYRO], records[STOCK]
    gradients_per_draw = reference["gradients"] / reference["ess"]
    seconds_per_gradient = stock["seconds"] / stock["gradients"]
    stock["rate"] = 1 / (seconds_per_gradient * gradients_per_draw)


def table(records: dict[str, Record]) -> str:
    """Return the Markdown table."""
    from pyro_bnn.runtime.text_table import format_markdown_table

    header = (
        *("1-16-1 net, one core", "draws", "gradients", "seconds", "least ESS of f(x)"),
        *("largest R-hat", "ESS/s", "x NumPyro, 4 chains", "x Pyro"),
    )
    rows = []
    for name, record in records.items():
        ess, r_hat, warmup = f"{record['ess']:.0f}", f"{record['r_hat']:.3f}", WARMUP
        if name == STOCK:
            ess, r_hat, warmup = "", "", 15
        rate = record["rate"]
        rows.append(
            (
                *(name, f"{warmup} + {record['draws']}", f"{record['gradients']:,}"),
                *(f"{record['seconds']:.1f}", ess, r_hat, f"{rate:.3g}"),
                f"{rate / records[NUMPYRO]['rate']:.3g}",
                f"{rate / records[STOCK]['rate']:.3g}",
            )
        )
    once = records["PyroBNN HMC, 16 chains"]["once"]
    return (
        format_markdown_table(header, rows, align="l" * len(header))
        + f"\n\nOnce for a machine: {once:.1f} s until inductor has compiled its first graph.\n"
    )


if __name__ == "__main__":
    main()
