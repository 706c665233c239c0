"""HMC on the handwritten digits of scikit-learn, with a 64-32-10 network, and mean-field VI beside it.

    python benchmarks/hmc_digits.py [--chains 16] [--warmup 500] [--draws 500] [--threads 2]

2,410 weights and biases under standard normal priors, all training images at every step. Agreement and total variation
are those of the averaged class probabilities on the test images; R-hat and ESS those of the probabilities. Writes
benchmarks/results/hmc_digits.json and .md.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from interleaved import write

from pyro_bnn import compare, datasets, fit, mcmc, priors
from pyro_bnn.guides import MeanField
from pyro_bnn.models import mlp_classifier


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (
        ("chains", 16),
        ("warmup", 500),
        ("draws", 500),
        ("threads", 2),
        ("epochs", 400),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    digits = datasets.digits()
    images, labels = digits.train
    model: Any = mlp_classifier(
        len(images), inputs=64, hidden=(32,), outputs=10, prior={"*": priors.Normal(1.0)}
    )
    guide = MeanField(model, init_scale=0.05)
    schedule = [1e-2, 1e-3]
    vi = fit(
        model, guide, (images, labels), epochs=a.epochs, batch_size=100, compile=True,
        learning_rate=lambda epoch: schedule[epoch > a.epochs / 2],
    ).posterior  # fmt: skip
    hmc = mcmc.hmc(model, (images, labels), chains=a.chains, warmup=a.warmup, draws=a.draws)
    found = compare({"mean field": vi, "HMC": hmc}, *digits.test, reference="HMC")
    seconds, gradients = hmc.facts["seconds"], hmc.facts["gradients"]
    head = (
        f"{a.chains} chains x ({a.warmup} + {a.draws}), {gradients:,} gradients of {len(images):,} images, "
        f"{seconds / 60:.1f} minutes on {a.threads} threads, compilation included.\n\n"
    )
    write(
        "hmc_digits",
        {"rows": found.rows, "notes": found.notes, "settings": vars(a)},
        head + found.to_markdown() + "\n",
    )


if __name__ == "__main__":
    main()
