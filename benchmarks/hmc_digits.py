"""HMC on the handwritten digits of scikit-learn with a 64-32-10 network, beside mean-field VI.

    python benchmarks/hmc_digits.py [--chains 16] [--warmup 500] [--draws 500] [--threads 2]

2,410 weights and biases under standard normal priors, all training images at every step. Agreement
and total variation are those of the averaged class probabilities on the test images; R-hat and ESS
those of the probabilities. Writes benchmarks/results/hmc_digits.json and .md.
"""

from __future__ import annotations

import torch
from interleaved import argument_parser, write_results

from pyro_bnn import compare, datasets, fit, mcmc, priors
from pyro_bnn.guides import MeanField
from pyro_bnn.models import mlp_classifier


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--chains", type=int, default=16)
    parser.add_argument("--warmup", type=int, default=500)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=400)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    digits = datasets.digits()
    num_data = len(digits.x_train)
    model = mlp_classifier(
        num_data, inputs=64, hidden=(32,), outputs=10, prior={"*": priors.Normal(1.0)}
    )

    def learning_rate(epoch: float) -> float:
        return 1e-3 if epoch > options.epochs / 2 else 1e-2

    variational = fit(
        model,
        MeanField(model, init_scale=0.05),
        digits.train,
        epochs=options.epochs,
        batch_size=100,
        compile=True,
        learning_rate=learning_rate,
    )
    hmc = mcmc.hmc(
        model,
        digits.train,
        chains=options.chains,
        warmup=options.warmup,
        draws=options.draws,
    )
    posteriors = {"mean field": variational.posterior, "HMC": hmc}
    comparison = compare(posteriors, digits.x_test, digits.y_test, reference="HMC")
    head = (
        f"{options.chains} chains x ({options.warmup} + {options.draws}), "
        f"{hmc.facts['gradients']:,} gradients of {num_data:,} images, "
        f"{hmc.facts['seconds'] / 60:.1f} minutes on {options.threads} threads, "
        "compilation included.\n\n"
    )
    record = {"rows": comparison.rows, "notes": comparison.notes, "settings": vars(options)}
    write_results("hmc_digits", record, head + comparison.to_markdown() + "\n")


if __name__ == "__main__":
    main()
