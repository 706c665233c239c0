"""Networks as ONNX files for other runtimes, each checked in onnxruntime before it is written.

:func:`torch.onnx.export` writes the graph that :func:`torch.export.export` captures. So every
network that torch can export has an ONNX file, not only those of the normal form of
:mod:`pyro_bnn.compression.pruning.graph`.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, fx, nn

from pyro_bnn import likelihoods
from pyro_bnn.likelihoods import Likelihood, LikelihoodWithSites, drop_last_axis
from pyro_bnn.network import BayesianNet
from pyro_bnn.posterior import Posterior
from pyro_bnn.runtime.tensor_files import write_atomically

from .pruning.graph import UnsupportedLayerError, graph_of
from .pruning.pruned_network import Pruned

__all__ = [
    "ExportError",
    "Session",
    "ensemble_to_onnx",
    "example_for",
    "onnx_is_available",
    "session_of",
    "to_onnx",
]

_TOLERANCE = 1e-5
_OPSET = 18  # read by every onnxruntime since 1.14
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class ExportError(RuntimeError):
    """Raised for a network that ONNX cannot express, or whose file computes other outputs."""


class Session(Protocol):
    """A network in onnxruntime."""

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, np.ndarray]
    ) -> Sequence[np.ndarray]:
        """Return the outputs for the given inputs."""
        ...


def to_onnx(
    network: Pruned | nn.Module,
    path: str | Path,
    example: Tensor | None = None,
    overwrite: bool = False,
) -> None:
    """Write a network as ONNX, with input ``x`` (batch, ...), output ``y`` and any batch size.

    Before the file is written, onnxruntime computes it for batches of 1, 2 and 5 examples. Its
    outputs may differ from those of torch by 1e-5, relative to the largest output if that is above
    one.

    Args:
        network: The result of :func:`~pyro_bnn.compression.prune`, whose smaller network is
            written, or any module.
        path: Path of the file.
        example: Some inputs (n, ...), of which only shape and type matter. They may be omitted if
            the network begins with a dense layer or a reshape, which determine the shape.
        overwrite: Whether to replace an existing file.

    Raises:
        ImportError: Onnx, onnxscript or onnxruntime is not installed.
        FileExistsError: The file exists and ``overwrite`` is ``False``.
        ValueError: An example is needed and missing.
        ExportError: ONNX cannot express the network, or its outputs differ.
    """
    if isinstance(network, Pruned):
        module, original = network.module, network.masked
    else:
        module = original = network
    if example is None:
        example = example_for(original, "to_onnx")
    _write("to_onnx", module, Path(path), example, "y", overwrite)


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

    The input is ``x`` (batch, ...). The output is ``mean``, equal to
    ``posterior.predict(x).mean``: probabilities (batch, classes), the probability of a one
    (batch,), or the mean of real data, (batch,) or (batch, d). The file is checked as by
    :func:`to_onnx`.

    Args:
        posterior: Posterior of a ``BayesianNet`` whose likelihood is Categorical, Bernoulli or
            Gaussian.
        path: Path of the file.
        example: Some inputs (n, ...).
        draws: K. The size of the file is proportional to it.
        seed: Seed of the draws, which are those of ``posterior.sample(draws, seed)``.
        overwrite: Whether to replace an existing file.

    Raises:
        ImportError: Onnx, onnxscript or onnxruntime is not installed.
        FileExistsError: The file exists and ``overwrite`` is ``False``.
        ExportError: ONNX cannot express the network, or its outputs differ.
        TypeError: The model is a hand-written program, or has another likelihood.
        ValueError: ``draws`` is below one.
    """
    model = posterior.model
    if not isinstance(model, BayesianNet):
        raise TypeError(
            "ensemble_to_onnx: expected the posterior of a BayesianNet, got one of a hand-written "
            "program, which has no network; write the model as a BayesianNet"
        )
    weights = posterior.sample(draws, seed)
    networks = []
    for k in range(draws):
        draw = {name: weights[name][k] for name in model.names}
        networks.append(model.network_with(draw))
    ensemble = Ensemble(networks, _mean_function(model.likelihood))
    _write("ensemble_to_onnx", ensemble, Path(path), example, "mean", overwrite)


class Ensemble(nn.Module):
    """The average of the predictions of several networks.

    Args:
        networks: Networks of one architecture.
        mean: Function from the outputs of a network to the mean of its predictive distribution.
    """

    def __init__(self, networks: Iterable[nn.Module], mean: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.mean = mean

    def forward(self, x: Tensor) -> Tensor:
        """Return the average."""
        return torch.stack([self.mean(network(x)) for network in self.networks]).mean(0)


def _mean_function(likelihood: Likelihood | LikelihoodWithSites) -> Callable[[Tensor], Tensor]:
    """Return the mean of y as a function of the outputs, without distribution objects.

    torch cannot export those.
    """
    if isinstance(likelihood, likelihoods.Categorical):
        return _probabilities
    if isinstance(likelihood, likelihoods.Bernoulli):
        return _probability_of_one
    if isinstance(likelihood, likelihoods.Gaussian):
        return drop_last_axis
    raise TypeError(
        "ensemble_to_onnx: expected a likelihood that is Categorical, Bernoulli or Gaussian, got "
        f"{type(likelihood).__name__}; export networks drawn by posterior.sample one by one with "
        "to_onnx"
    )


def _probabilities(outputs: Tensor) -> Tensor:
    return outputs.softmax(-1)


def _probability_of_one(outputs: Tensor) -> Tensor:
    return drop_last_axis(outputs).sigmoid()


def example_for(network: nn.Module, caller: str = "example_for") -> Tensor:
    """Return two examples of zeros with the input shape that the first operation determines.

    Args:
        network: Any module.
        caller: The function that an error message begins with.

    Raises:
        ValueError: The first operation does not determine the shape. A convolution, for instance,
            takes images of any size.
    """
    try:
        graph = graph_of(nn.Sequential(network))  # a layer alone would be traced through
    except UnsupportedLayerError as error:
        raise ValueError(f"{caller}: {error}; pass example=, some inputs of the network") from error
    start = next(node for node in graph.graph.nodes if node.op == "placeholder")
    size = _input_size(graph, start)
    if size is None:
        raise ValueError(
            f"{caller}: expected a network whose first operation determines the shape of its "
            f"inputs, got a {type(network).__name__}; pass example=, some inputs of the network"
        )
    parameter = next(network.parameters(), torch.zeros(()))
    return torch.zeros(2, size, dtype=parameter.dtype, device=parameter.device)


def _input_size(graph: fx.GraphModule, node: fx.Node) -> int | None:
    """Return how many numbers an example has, from the first user of a node that determines it."""
    for user in node.users:
        if user.op == "call_module":
            layer = graph.get_submodule(str(user.target))
            if isinstance(layer, nn.Linear):
                return layer.in_features
        if user.target is torch.reshape:
            shape = cast(tuple[int, ...], user.args[1])  # (-1, ...) in the normal form
            return math.prod(shape[1:])
        if user.target is torch.flatten:
            return _input_size(graph, user)
    return None


def onnx_is_available() -> bool:
    """Return whether the packages of the extra ``onnx`` are installed."""
    return all(importlib.util.find_spec(name) is not None for name in _PACKAGES)


# --- writing and checking ---------------------------------------------------------------------


def _write(
    caller: str, module: nn.Module, path: Path, example: Tensor, output: str, overwrite: bool
) -> None:
    """Export a network, check it, and write the file in one step."""
    _require_onnx(caller)
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{caller}: {path} exists; give another path, or overwrite=True to replace it"
        )
    module = copy.deepcopy(module).cpu().eval()
    # two examples: torch.export takes a batch of one for a constant
    example = torch.cat([example[:1], example[:1]]).detach().cpu()
    try:
        content = _exported(module, example, output)
        _check(content, module, example)
    except ExportError as error:
        raise ExportError(f"{caller}: {error}") from error
    write_atomically(path, content)


def _require_onnx(caller: str) -> None:
    for name in _PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f'{caller}: ONNX needs the package {name}; pip install "pyro-bnn[onnx]"'
            ) from error


def _exported(module: nn.Module, example: Tensor, output: str) -> bytes:
    """Return the content of an ONNX file.

    Raises:
        ExportError: ONNX cannot express the network.
    """
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        # warnings of the exporter about itself; those of the network pass
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
        except Exception as error:  # the exporter raises types of many libraries
            reasons = [*str(error).strip().splitlines(), type(error).__name__]
            raise ExportError(
                f"{type(module).__name__}: torch cannot write it as ONNX: {reasons[0]}"
            ) from error
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


@torch.no_grad()
def _check(content: bytes, module: nn.Module, example: Tensor) -> None:
    """Compare onnxruntime with torch on batches of several sizes.

    Raises:
        ExportError: The outputs differ.
    """
    session = session_of(content)
    generator = torch.Generator().manual_seed(0)
    name = type(module).__name__
    for size in (1, 2, 5):
        x = torch.randn(size, *example.shape[1:], generator=generator, dtype=example.dtype)
        expected = module(x)
        computed = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
        if computed.shape != expected.shape:
            raise ExportError(
                f"{name}: expected outputs {tuple(expected.shape)} for a batch of {size} as from "
                f"torch, got {tuple(computed.shape)} from onnxruntime; no file was written"
            )
        scale = max(1.0, float(expected.abs().max()))
        difference = float((computed - expected).abs().max())
        if not difference <= _TOLERANCE * scale:
            raise ExportError(
                f"{name}: expected onnxruntime to agree with torch to {_TOLERANCE * scale:.1e}, "
                f"the outputs differ by {difference:.1e}; no file was written"
            )


def session_of(content: bytes, threads: int = 1) -> Session:
    """Return a network in onnxruntime on the CPU.

    Args:
        content: Content of an ONNX file.
        threads: Number of CPU threads.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only: hints would go to the terminal
    session: Session = onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"]
    )
    return session
