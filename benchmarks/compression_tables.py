"""Write the tables of smaller networks: python benchmarks/compression_tables.py

``pyro-bnn reproduce ... --results benchmarks/results/compression`` writes the rows. This command
collects them in ``benchmarks/results/compression.md``, which the documentation shows.
"""

from __future__ import annotations

from pathlib import Path

from pyro_bnn.reproduction import tables

RESULTS = Path(__file__).parent / "results"
TARGET = RESULTS / "compression.md"

# recipe, network, title
TABLES = [
    (
        "sparse-vd",
        "lenet-300-100",
        "Sparse VD, LeNet-300-100 "
        "(published: 68x fewer weights at 1.92 %; smallest file known: 124x at 1.9 %)",
    ),
    (
        "sparse-vd",
        "lenet-5",
        "Sparse VD, LeNet-5-Caffe (published: 280x at 0.75 %)",
    ),
    (
        "bayesian-compression",
        "lenet-300-100",
        "Group priors, LeNet-300-100 "
        "(published: 278-98-13 and 311-86-14 at 1.8 %, 97-71-33 at 1.6 %)",
    ),
    (
        "bayesian-compression",
        "lenet-5",
        "Group priors, LeNet-5-Caffe (published: 8-13-88-13 and 5-10-76-16 at 1.0 %; "
        "smallest file known: 1,110x at 0.96 %)",
    ),
    (
        "bayesian-compression",
        "vgg-sixteenth",
        "Group priors, VGG at a sixteenth of the width, two epochs of each fit "
        "(the full width, `--network vgg --device cuda`, has not been run)",
    ),
    (
        "random-labels",
        "mlp",
        "Random labels: binary dropout memorizes them, Sparse VD removes every weight",
    ),
]


def page() -> str:
    """Return the tables of all recipes that have rows."""
    parts = []
    for recipe, network, title in TABLES:
        rows = RESULTS / "compression"
        if (rows / recipe / network).is_dir():
            parts.append(f"**{title}**\n\n{tables.format_rows(recipe, network, rows)}")
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(page())
    print(TARGET)
