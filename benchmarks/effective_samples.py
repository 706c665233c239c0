"""Effective draws per second of HMC and NUTS on one small network, compilation included.

    pip install "pyro-bnn[benchmarks]"
    python benchmarks/effective_samples.py [--draws 1000]

The network is 1-16-1 with tanh (49 weights), standard normal priors, known noise 0.3, 60 points in two clusters. What
counts is the smallest bulk ESS over the *function values* at 20 inputs, divided by all seconds from the call to the
last draw, compilation and warm-up among them. Each method has a process of its own, on one core. Both compilers start
without a compiled graph of this program; what inductor builds once for a machine (precompiled headers) is built before
the clock starts, and its time is given. Pyro's NUTS is run for few draws and extrapolated: its seconds per gradient
times the gradients per effective draw of NumPyro's. Writes benchmarks/results/effective_samples.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

WARMUP, NOISE, HIDDEN, DEPTH = 200, 0.3, 16, 8


def problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return x (60, 1), y (60,) and the inputs at which functions are compared (20, 1)."""
    generator = np.random.default_rng(0)
    x = np.concatenate([generator.uniform(-2, -1, 30), generator.uniform(1, 2, 30)])[
        :, None
    ].astype("float32")
    y = (np.sin(2 * x[:, 0]) + NOISE * generator.standard_normal(60)).astype("float32")
    return x, y, np.linspace(-3, 3, 20, dtype="float32")[:, None]


def ours(method: str, chains: int, draws: int) -> dict[str, Any]:
    """Run a sampler of PyroBNN."""
    import torch
    from torch import nn

    from pyro_bnn import BayesianNet, likelihoods, mcmc, priors
    from pyro_bnn.runtime.compile import compiled

    torch.set_num_threads(1)
    began = time.perf_counter()
    compiled(lambda a: (a.sin() @ a,), [torch.ones(3, 3)], "a first graph")
    once = time.perf_counter() - began
    x, y, at = map(torch.from_numpy, problem())
    net = nn.Sequential(nn.Linear(1, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1))
    model = BayesianNet(net, {"*": priors.Normal()}, likelihoods.Gaussian(NOISE), num_data=60)
    options: dict[str, Any] = {
        "chains": chains,
        "warmup": WARMUP,
        "draws": draws,
        "progress": False,
    }
    began = time.perf_counter()
    if method == "hmc":
        posterior = mcmc.hmc(model, (x, y), **options)
    elif method == "nutpie":
        posterior = mcmc.nuts(model, (x, y), backend="nutpie", max_tree_depth=DEPTH, **options)
    else:
        posterior = mcmc.nuts(
            model, (x, y), max_tree_depth=DEPTH, **options | {"warmup": 15, "draws": 15}
        )
    seconds = time.perf_counter() - began
    values = posterior.functions(at)["mean"].numpy()
    return measured(values, seconds, posterior.facts["gradients"]) | {"once": once}


def numpyros(chains: int, draws: int) -> dict[str, Any]:
    """Run NumPyro's NUTS, all chains vectorised."""
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
        w = {
            name: numpyro.sample(name, dist.Normal(jnp.zeros(s), 1.0).to_event(len(s)))
            for name, s in shapes.items()
        }
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
    began = time.perf_counter()
    run.warmup(jax.random.PRNGKey(0), x, y, extra_fields=("num_steps",), collect_warmup=True)
    before = int(run.get_extra_fields()["num_steps"].sum())
    run.run(run.post_warmup_state.rng_key, x, y, extra_fields=("num_steps",))
    draws_ = run.get_samples(group_by_chain=True)
    jax.block_until_ready(draws_)
    seconds = time.perf_counter() - began
    values = jax.vmap(jax.vmap(lambda w: forward(w, at)))(draws_)
    return measured(
        np.asarray(values), seconds, before + int(run.get_extra_fields()["num_steps"].sum())
    )


def measured(values: np.ndarray, seconds: float, gradients: int) -> dict[str, Any]:
    """Return what is kept of a run: its function values are (chain, draw, 20)."""
    import arviz as az

    per_point = [values[:, :, i].astype("float64") for i in range(values.shape[2])]
    ess = min(float(az.ess(v)) for v in per_point)
    r_hat = max(float(az.rhat(v)) for v in per_point) if len(values) > 1 else float("nan")
    return {
        "ess": ess,
        "r_hat": r_hat,
        "seconds": seconds,
        "gradients": gradients,
        "draws": values.shape[1],
    }


RUNS = {
    "PyroBNN HMC, 16 chains": ("hmc", 16),
    "PyroBNN HMC, 4 chains": ("hmc", 4),
    "PyroBNN model in nutpie's NUTS, 4 chains": ("nutpie", 4),
    "NumPyro NUTS, 4 vectorised chains": ("numpyro", 4),
    "NumPyro NUTS, 16 vectorised chains": ("numpyro", 16),
    "Pyro NUTS, 1 chain (15 + 15, extrapolated)": ("pyro", 1),
}


def alone(name: str, draws: int) -> dict[str, Any]:
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
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--run", choices=list(RUNS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        os.sched_setaffinity(0, {0})
        method, chains = RUNS[arguments.run]
        found = (
            numpyros(chains, arguments.draws)
            if method == "numpyro"
            else ours(method, chains, arguments.draws)
        )
        print(json.dumps(found))
        return
    from interleaved import write

    found = {}
    for name in RUNS:
        found[name] = alone(name, arguments.draws)
        print(name, found[name], flush=True)
    reference, stock = (
        found["NumPyro NUTS, 4 vectorised chains"],
        found["Pyro NUTS, 1 chain (15 + 15, extrapolated)"],
    )
    stock["rate"] = 1 / (
        stock["seconds"] / stock["gradients"] * reference["gradients"] / reference["ess"]
    )
    write("effective_samples", found, table(found))


def table(found: dict[str, dict[str, Any]]) -> str:
    for run in found.values():
        run.setdefault("rate", run["ess"] / run["seconds"])
    base = found["NumPyro NUTS, 4 vectorised chains"]["rate"]
    stock = found["Pyro NUTS, 1 chain (15 + 15, extrapolated)"]["rate"]
    lines = [
        "| 1-16-1 net, one core | draws | gradients | seconds | least ESS of f(x) | largest R-hat | ESS/s "
        "| x NumPyro, 4 chains | x Pyro |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, run in found.items():
        extrapolated = "extrapolated" in name
        ess, r_hat = ("", "") if extrapolated else (f"{run['ess']:.0f}", f"{run['r_hat']:.3f}")
        warmup = 15 if extrapolated else WARMUP
        cells = [
            name,
            f"{warmup} + {run['draws']}",
            f"{run['gradients']:,}",
            f"{run['seconds']:.1f}",
            ess,
            r_hat,
        ]
        lines.append(
            f"| {' | '.join(cells)} | {run['rate']:.3g} | {run['rate'] / base:.3g} | {run['rate'] / stock:.3g} |"
        )
    once = found["PyroBNN HMC, 16 chains"]["once"]
    return (
        "\n".join(lines)
        + f"\n\nOnce for a machine: {once:.1f} s until inductor has compiled its first graph.\n"
    )


if __name__ == "__main__":
    main()
