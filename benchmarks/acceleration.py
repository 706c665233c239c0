"""How much faster a pruned LeNet-5 is than the LeNet-5 that computes the same.

    python benchmarks/acceleration.py [benchmarks/records/lenet-5-caffe.pbnn ...]

One thread. Each file is decoded, and its numbers are put into a LeNet-5 of full size, zeros elsewhere: both compute the
same, which is checked. Each network is timed in the memory layout in which it is fastest, in rounds that take turns:
in torch, compiled by torch, and in onnxruntime where that is installed. Writes benchmarks/results/acceleration.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from pyro_bnn import compression
from pyro_bnn.compression.latency import macs, measure
from pyro_bnn.models import LeNet5
from pyro_bnn.runtime.malloc import retain_freed_memory

HERE = Path(__file__).parent


@torch.no_grad()
def at_full_size(small: nn.Module) -> LeNet5:
    """Return a LeNet-5 in which the units of the smaller network come first and all others are zero."""
    net = LeNet5()
    own, there = (
        [m for m in n.modules() if isinstance(m, nn.Conv2d | nn.Linear)] for n in (net, small)
    )
    chosen = [buffer for _, buffer in small.named_buffers() if not buffer.is_floating_point()]
    for layer, source in zip(own, there, strict=True):
        for parameter in layer.parameters():
            parameter.zero_()
        layer.bias[: len(source.bias)] = source.bias
        block = layer.weight[: source.weight.shape[0]]
        inputs = torch.arange(source.weight.shape[1])
        if (
            layer is net.fc1 and chosen
        ):  # feature c * 16 + k of the filters that are left: they are the first ones
            inputs = chosen[-1]
        block[:, inputs] = source.weight
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "files", nargs="*", type=Path, default=[HERE / "records" / "lenet-5-caffe.pbnn"]
    )
    arguments = parser.parse_args()
    retain_freed_memory()  # else half of the time goes into pages that the system gives and takes
    lines = [
        "| file | runtime | batch | original, best layout | smaller, best layout | times faster | times fewer MACs |",
        "|---|---|---|---|---|---|---|",
    ]
    x: Tensor = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for file in arguments.files:
        small = compression.load(file)
        net = at_full_size(small)
        fewer = sum(macs(net, x[:1]).values()) / sum(macs(small, x[:1]).values())
        for row in measure(net, small, x, batches=(1, 512, 8192), compiled=True):
            times = [
                f"{1e3 * s:.3g} ms ({where})"
                for s, where in zip((row.before, row.after), row.layouts, strict=True)
            ]
            lines.append(
                f"| {file.name} | {row.runtime} | {row.batch} | {' | '.join(times)} | {row.before / row.after:.1f} "
                f"| {fewer:.1f} |"
            )
    text = "\n".join(lines) + "\n"
    (HERE / "results" / "acceleration.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
