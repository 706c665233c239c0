"""Put the tables of smaller networks into the README: python benchmarks/compression_tables.py

``pyro-bnn reproduce ... --results benchmarks/results/compression`` writes the rows, ``benchmarks/acceleration.py`` the
seconds; what stands between the two marks in README.md is written anew from them.
"""

from __future__ import annotations

from pathlib import Path

from pyro_bnn.reproduction import tables

HERE = Path(__file__).parent
START, END = "<!-- compression -->", "<!-- end of compression -->"
TITLES = {
    (
        "sparse-vd",
        "lenet-300-100",
    ): "Sparse VD (published: 68x fewer weights at 1.92 %; smallest file known 124x at 1.9 %)",
    ("sparse-vd", "lenet-5"): "Sparse VD, LeNet-5-Caffe (published: 280x at 0.75 %)",
    (
        "bayesian-compression",
        "lenet-300-100",
    ): "By groups (published: 278-98-13 and 311-86-14 at 1.8 %, 97-71-33 at 1.6 %)",
    (
        "bayesian-compression",
        "lenet-5",
    ): "By groups, LeNet-5-Caffe (published: 8-13-88-13 and 5-10-76-16 at 1.0 %; "
    "smallest file known 1,110x at 0.96 %)",
    (
        "bayesian-compression",
        "vgg-sixteenth",
    ): "The program for VGG, two epochs of each fit at a sixteenth of the "
    "width; the full width (`--network vgg --device cuda`) has not been run",
    (
        "random-labels",
        "mlp",
    ): "Labels drawn by lot: binary dropout memorises them, Sparse VD removes every weight",
}
ACCELERATION = (
    "`python benchmarks/acceleration.py benchmarks/records/lenet-5-caffe.pbnn "
    "benchmarks/records/lenet-5-caffe-5-10-70-13.pbnn`,\none thread, each network in its own best memory layout. "
    "The aim was six times at batch 8,192: onnxruntime has it; in torch the pages of large\nactivations and filters of "
    "few channels cost more than their multiplications, and parts of 512 help the original as much"
)


def main() -> None:
    results = HERE / "results"
    parts = [
        f"{title}:\n\n{tables.table(recipe, network, results / 'compression')}"
        for (recipe, network), title in TITLES.items()
        if (results / "compression" / recipe / network).is_dir()
    ]
    parts.append(f"{ACCELERATION}:\n\n{(results / 'acceleration.md').read_text()}")
    readme = HERE.parent / "README.md"
    before, _, rest = readme.read_text().partition(START)
    _, _, after = rest.partition(END)
    readme.write_text(before + START + "\n\n" + "\n".join(parts) + "\n" + END + after)


if __name__ == "__main__":
    main()
