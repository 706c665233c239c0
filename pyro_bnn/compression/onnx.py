"""ONNX: networks as files that other runtimes compute, each checked in onnxruntime before it is put in its place.

The graph is written by :func:`torch.onnx.export` from what :func:`torch.export.export` captures, so every network that
torch can export goes through, not only those of the normal form of :mod:`pyro_bnn.compression.pruning.graph`.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from pyro_bnn import likelihoods
from pyro_bnn.network import BayesianNet
from pyro_bnn.posterior import Posterior
from pyro_bnn.runtime.tensor_files import write_atomically

from .pruning.graph import UnsupportedLayerError, graph_of
from .pruning.pruned_network import Pruned

__all__ = [
    "ExportError",
    "ensemble_to_onnx",
    "example_for",
    "onnx_is_there",
    "session_of",
    "to_onnx",
]

_TOLERANCE = 1e-5
_OPSET = 18  # read by every onnxruntime since 1.14


class ExportError(RuntimeError):
    """A network that ONNX cannot express, or whose file computes something else than the network."""


def to_onnx(
    network: Pruned | nn.Module,
    path: str | Path,
    example: Tensor | None = None,
    overwrite: bool = False,
) -> None:
    """Write a network as ONNX: input ``x`` (batch, ...), output ``y``, any batch size.

    Before the file is put in its place onnxruntime computes it for batches of 1, 2 and 5 examples; its outputs may
    differ from those of torch by 1e-5, relative to the largest output where that is above one.

    Args:
        network: what :func:`~pyro_bnn.compression.prune` returns (its smaller network is written), or any module.
        path: of the file.
        example: some inputs (n, ...); only their shape and type matter. May be left out where the network itself tells:
            where it begins with a dense layer or a reshape.
        overwrite: replace a file that is there.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is missing.
        FileExistsError: the file is there already.
        ValueError: no example where one is needed.
        ExportError: ONNX cannot express the network, or its outputs are others.
    """
    module = network.module if isinstance(network, Pruned) else network
    if example is None:
        example = example_for(network.masked if isinstance(network, Pruned) else network)
    _write(module, Path(path), example, "y", overwrite)


def ensemble_to_onnx(
    posterior: Posterior,
    path: str | Path,
    example: Tensor,
    draws: int = 20,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    r"""Write the average over networks drawn from the posterior as one ONNX graph.

    .. math:: \frac1K \sum_{k=1}^{K} \mathbb{E}[y \mid x, w_k], \qquad w_k \sim q(w)

    Input ``x`` (batch, ...); output ``mean``: probabilities (batch, classes), the probability of a one (batch,), or the
    mean of real data (batch,) or (batch, d), as ``posterior.predict(x).mean``. The file is checked as by
    :func:`to_onnx`.

    Args:
        posterior: of a ``BayesianNet`` whose likelihood is Categorical, Bernoulli or Gaussian.
        path: of the file.
        example: some inputs (n, ...).
        draws: K; the file grows with it.
        seed: of the draws, which are those of ``posterior.sample(draws, seed)``.
        overwrite: replace a file that is there.

    Raises:
        ImportError, FileExistsError, ExportError: as :func:`to_onnx`.
        TypeError: a hand-written program, which has no network, or another likelihood.
        ValueError: fewer than one draw.
    """
    if not isinstance(posterior.model, BayesianNet):
        raise TypeError(
            "ensemble_to_onnx: a hand-written program has no network; write it as a BayesianNet"
        )
    weights = posterior.sample(draws, seed)
    networks = [
        posterior.model.network_with({name: weights[name][k] for name in posterior.model.names})
        for k in range(draws)
    ]
    ensemble = Ensemble(networks, _mean_of(posterior.model.likelihood))
    _write(ensemble, Path(path), example, "mean", overwrite)


class Ensemble(nn.Module):
    """The average of what several networks predict.

    Args:
        networks: of one architecture.
        mean: makes the mean of the predictive distribution from the outputs of a network.
    """

    def __init__(self, networks: Iterable[nn.Module], mean: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.networks, self.mean = nn.ModuleList(networks), mean

    def forward(self, x: Tensor) -> Tensor:
        """Return the average."""
        return torch.stack([self.mean(network(x)) for network in self.networks]).mean(0)


def _mean_of(likelihood: Any) -> Callable[[Tensor], Tensor]:
    """Return the mean of y as a function of the outputs; the distribution objects themselves cannot be exported."""
    if isinstance(likelihood, likelihoods.Categorical):
        return lambda outputs: outputs.softmax(-1)
    if isinstance(likelihood, likelihoods.Bernoulli):
        return lambda outputs: _drop_last(outputs).sigmoid()
    if isinstance(likelihood, likelihoods.Gaussian):
        return _drop_last
    raise TypeError(
        "ensemble_to_onnx: expected a likelihood that is Categorical, Bernoulli or Gaussian, "
        f"got {type(likelihood).__name__}; export networks drawn by posterior.sample one by one with to_onnx"
    )


def _drop_last(outputs: Tensor) -> Tensor:
    return outputs.squeeze(-1) if outputs.dim() > 1 and outputs.shape[-1] == 1 else outputs


def example_for(network: nn.Module) -> Tensor:
    """Return two examples of zeros of the shape that the network takes, where its first operation tells it.

    Raises:
        ValueError: it does not: the network begins with a convolution, say, which takes images of any size.
    """
    try:
        graph = graph_of(nn.Sequential(network))  # a layer alone would be traced through
    except UnsupportedLayerError as error:
        raise ValueError(f"{error}; pass example=, some inputs of the network") from error
    (start,) = (node for node in graph.graph.nodes if node.op == "placeholder")
    size = _input_size(graph, start)
    if size is None:
        name = type(network).__name__
        raise ValueError(
            f"{name}: the shape of its inputs is not known; pass example=, some inputs of the network"
        )
    parameter = next(network.parameters(), torch.zeros(()))
    return torch.zeros(2, size, dtype=parameter.dtype, device=parameter.device)


def _input_size(graph: fx.GraphModule, node: fx.Node) -> int | None:
    """Return how many numbers an example has, from the first node that says."""
    for user in node.users:
        layer = graph.get_submodule(str(user.target)) if user.op == "call_module" else None
        if isinstance(layer, nn.Linear):
            return layer.in_features
        if user.target is torch.reshape:
            return int(torch.Size(user.args[1][1:]).numel())  # type: ignore[arg-type, index]
        if user.target is torch.flatten:
            return _input_size(graph, user)
    return None


def onnx_is_there() -> bool:
    """Return whether the packages of the extra ``onnx`` are installed."""
    return all(
        importlib.util.find_spec(name) is not None for name in ("onnx", "onnxscript", "onnxruntime")
    )


# --- writing and checking ---------------------------------------------------------------------------------------------


def _write(module: nn.Module, path: Path, example: Tensor, output: str, overwrite: bool) -> None:
    _require_onnx()
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path}: is there already; choose another name, or pass overwrite=True"
        )
    module = copy.deepcopy(module).cpu().eval()
    example = (
        torch.cat([example[:1], example[:1]]).detach().cpu()
    )  # a batch of one would be taken for a constant
    content = _exported(module, example, output)
    _check(content, module, example)
    write_atomically(path, content)


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'ONNX needs the package {error.name}; pip install "pyro-bnn[onnx]"'
        ) from error


def _exported(module: nn.Module, example: Tensor, output: str) -> bytes:
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        # what the exporter says of its own insides; our own warnings pass
        warnings.filterwarnings("ignore", module=r"(torch|onnx|onnxscript|onnx_ir|copyreg)(\.|$)")
        try:
            program = torch.onnx.export(
                module,
                (example,),
                input_names=["x"],
                output_names=[output],
                opset_version=_OPSET,
                dynamic_shapes=({0: batch},),
                dynamo=True,
                verbose=False,
            )
        except Exception as error:
            why = str(error).strip().splitlines() or [type(error).__name__]
            raise ExportError(
                f"{type(module).__name__}: torch cannot write it as ONNX: {why[0]}"
            ) from error
    assert program is not None
    return program.model_proto.SerializeToString()


@torch.no_grad()
def _check(content: bytes, module: nn.Module, example: Tensor) -> None:
    """Compare onnxruntime with torch on batches of several sizes."""
    session = session_of(content)
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 5):
        x = torch.randn(size, *example.shape[1:], generator=generator, dtype=example.dtype)
        expected = module(x)
        found = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
        if found.shape != expected.shape:
            shapes = f"{tuple(expected.shape)} from torch, {tuple(found.shape)} from onnxruntime"
            raise ExportError(
                f"{type(module).__name__}: the outputs for a batch of {size} have other shapes: {shapes}"
            )
        scale = max(1.0, float(expected.abs().max()))
        difference = float((found - expected).abs().max())
        if not difference <= _TOLERANCE * scale:
            raise ExportError(
                f"{type(module).__name__}: expected onnxruntime to agree with torch to {_TOLERANCE * scale:.1e}, "
                f"the outputs differ by {difference:.1e}; no file was written"
            )


def session_of(content: bytes, threads: int = 1) -> Any:
    """Return an onnxruntime session on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors: its hints would go to the terminal
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
