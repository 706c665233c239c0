"""The speed of a pruned LeNet-5 against the LeNet-5 that computes the same function.

    python benchmarks/acceleration.py [benchmarks/records/lenet-5-caffe.pbnn ...]

One thread. Each file is decoded, and its weights are copied into a LeNet-5 of full size, zeros
elsewhere; both must compute the same function. Each network is timed in the memory layout in which
it is fastest, in rounds that take turns: in torch, compiled by torch, and in onnxruntime if it is
installed. Writes benchmarks/results/acceleration.md.
"""

from __future__ import annotations

from pathlib import Path

import torch
from interleaved import RESULTS, argument_parser
from torch import nn

from pyro_bnn import compression
from pyro_bnn.compression.latency import Latency, macs, measure
from pyro_bnn.models import LeNet5
from pyro_bnn.runtime.malloc import retain_freed_memory
from pyro_bnn.runtime.text_table import format_markdown_table

RECORD = Path(__file__).parent / "records" / "lenet-5-caffe.pbnn"
HEADER = (
    "file",
    "runtime",
    "batch",
    "original, best layout",
    "smaller, best layout",
    "times faster",
    "times fewer MACs",
)


def weighted_layers(network: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    layers = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            layers.append(module)
    return layers


@torch.no_grad()
def at_full_size(small: nn.Module) -> LeNet5:
    """Return a LeNet-5 whose first units are those of the smaller network, the others zero."""
    net = LeNet5()
    selections = []
    for buffer in small.buffers():
        if not buffer.is_floating_point():
            selections.append(buffer)
    for layer, source in zip(weighted_layers(net), weighted_layers(small), strict=True):
        for parameter in layer.parameters():
            parameter.zero_()
        if layer.bias is not None and source.bias is not None:
            layer.bias[: len(source.bias)] = source.bias
        inputs = torch.arange(source.weight.shape[1])
        if layer is net.fc1 and selections:
            # feature 16 c + k of filter c: the remaining filters are the first ones
            inputs = selections[-1]
        layer.weight[: source.weight.shape[0]][:, inputs] = source.weight
    return net.eval()


def cells(file: Path, row: Latency, fewer: float) -> list[str]:
    before, after = row.layouts
    return [
        file.name,
        row.runtime,
        str(row.batch),
        f"{1e3 * row.before:.3g} ms ({before})",
        f"{1e3 * row.after:.3g} ms ({after})",
        f"{row.speedup:.1f}",
        f"{fewer:.1f}",
    ]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("files", nargs="*", type=Path, default=[RECORD])
    arguments = parser.parse_args()
    retain_freed_memory()  # otherwise half of the time goes into pages returned to the system
    x = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    rows = []
    for file in arguments.files:
        small = compression.load(file)
        net = at_full_size(small)
        fewer = sum(macs(net, x[:1]).values()) / sum(macs(small, x[:1]).values())
        for latency in measure(net, small, x, batches=(1, 512, 8192), compiled=True):
            rows.append(cells(file, latency, fewer))
    text = format_markdown_table(HEADER, rows, align="l" * len(HEADER)) + "\n"
    (RESULTS / "acceleration.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
