"""BayesianNet: the Pyro program of a Bayesian neural network, made from a network, a prior and a likelihood."""

from __future__ import annotations

import copy
import difflib
import fnmatch
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .likelihoods import Likelihood, LikelihoodWithSites
from .priors import Prior

__all__ = ["BayesianNet", "InitialValues"]


class WeightSite(NamedTuple):
    """One uncertain weight: its name, all its places in the network, and its group axis."""

    name: str
    aliases: tuple[str, ...]
    group_dim: int | None


class BayesianNet(PyroModule):
    r"""A neural network with uncertain weights, as a Pyro model.

    .. math:: p(y, w \mid x) = p(w) \prod_{n=1}^{N} p(y_n \mid f_w(x_n))

    The program samples the weights of ``net``, runs the net on them and observes ``y`` in a plate ``"data"`` of size
    ``num_data``. It is called as ``model(x, y)`` with a minibatch (whose log-likelihood the plate scales by N/B), as
    ``model(x, y)`` with all the data and ``subsample_size`` set (then the plate draws the minibatch), or as
    ``model(x)``, which also samples ``y``; it returns the outputs of the network. Net, priors and likelihood are
    copied; what becomes a site stops being a parameter.

    Args:
        net: any :class:`torch.nn.Module`.
        prior: one prior for all weights (parameters of two or more axes that are neither biases nor part of a
            normalisation layer), or a mapping from a pattern for parameter names (``"fc1.*"``; ``"*"`` covers biases
            too) or a layer type to a prior or ``None``. Of several keys that fit the first one counts. What no prior
            names stays a parameter, learned by maximum likelihood.
        likelihood: turns the outputs into a distribution over ``y``: see :mod:`pyro_bnn.likelihoods`.
        num_data: N, the number of examples in the data set; the ELBO must not depend on the size of a batch.
        subsample_size: draw minibatches of this size in the plate when all N examples are given.

    Raises:
        ValueError: a key of ``prior`` that fits no parameter, or priors for no weight at all; ``num_data`` or
            ``subsample_size`` out of range; at the first call, a weight that the net never reads.
        TypeError: a prior that is no function of a name, a shape and a group axis, such as a distribution.

    >>> from pyro_bnn import likelihoods, priors
    >>> model = BayesianNet(nn.Linear(3, 1), priors.Normal(1.0), likelihoods.Gaussian(0.1), num_data=100)
    >>> list(model.weights()), [name for name, _ in model.named_parameters()]
    (['weight'], ['net.bias'])
    >>> model(torch.zeros(5, 3)).shape
    torch.Size([5, 1])
    """

    def __init__(
        self,
        net: nn.Module,
        prior: Prior | Mapping[str | type[nn.Module], Prior | None],
        likelihood: Likelihood,
        num_data: int,
        subsample_size: int | None = None,
    ) -> None:
        super().__init__()
        if num_data < 1:
            raise ValueError(
                f"BayesianNet: num_data is the number of training examples, at least 1; got {num_data}"
            )
        if subsample_size is not None and not 1 <= subsample_size <= num_data:
            raise ValueError(
                f"BayesianNet: expected subsample_size in 1 ... {num_data} (num_data), got {subsample_size}"
            )
        if isinstance(likelihood, type) or not callable(likelihood):
            raise ValueError(
                f"BayesianNet: expected a likelihood such as likelihoods.Categorical(), got {likelihood!r}"
            )
        self.net = copy.deepcopy(net)
        self.likelihood = copy.deepcopy(likelihood)
        self.num_data = num_data
        self.subsample_size = subsample_size
        self.sites: list[WeightSite] = []
        self.priors = (
            nn.ModuleDict()
        )  # a prior with buffers or parameters of its own moves and trains with the model
        self._plain_priors: dict[str, Prior] = {}
        self._reads_checked = False
        self._order = [name for name, _ in net.named_parameters(remove_duplicate=False)]
        for name, aliases, chosen in _assign(self.net, prior):
            key = _key(name)
            if isinstance(chosen, nn.Module):
                self.priors[key] = copy.deepcopy(chosen)
            else:
                self._plain_priors[key] = chosen
            owner, attribute = _owner(self.net, name)
            self.sites.append(WeightSite(name, aliases, group_dim(owner, attribute)))
            initial = getattr(owner, attribute).detach().clone()
            for alias in aliases:  # the value stays as a buffer: where the posterior mean starts
                owner, attribute = _owner(self.net, alias)
                delattr(owner, attribute)
                owner.register_buffer(attribute, initial)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Run the program; return the outputs of the network for the (mini)batch."""
        self._check(x, y)
        _ = self.priors  # reading it is a parameter statement: a prior may have parameters to learn
        weights = {site.name: self._draw(site) for site in self.sites}
        unknowns = self._unknowns()
        with self._plate(x, y) as batch:
            if isinstance(batch, Tensor):
                x, y = x[batch], None if y is None else y[batch]
            outputs = self._run(weights, x)
            distribution = cast(LikelihoodWithSites, self.likelihood)(outputs, **unknowns)
            pyro.sample("y", _observable(distribution, y), obs=y)
        return outputs

    def weights(self) -> dict[str, Tensor]:
        """Return every uncertain weight at its initial value: its sites are listed, nothing is sampled.

        Under :func:`pyro.poutine.replay` the weights are those that the replayed sites make.
        """
        initial = {}
        for site in self.sites:
            with InitialValues(site.name, self._initial(site)):
                initial[site.name] = self._draw(site)
        return initial

    def initialize(self) -> None:
        """List every latent site, those of the likelihood too, at its initial value: what a guide starts from."""
        weights = self.weights()
        with InitialValues("", next(iter(weights.values()))):
            self._unknowns()

    @property
    def names(self) -> list[str]:
        """The names of the uncertain weights."""
        return [site.name for site in self.sites]

    def network_with(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return the network as a plain module, with these values for the uncertain weights, as parameters again.

        Raises:
            ValueError: a weight that is missing or has another shape than the network's.
        """
        net = copy.deepcopy(self._network)
        for site in self.sites:
            owner, attribute = _owner(net, site.name)
            expected, value = tuple(getattr(owner, attribute).shape), weights.get(site.name)
            if value is None or value.shape != expected:
                received = "none" if value is None else f"one of shape {tuple(value.shape)}"
                raise ValueError(
                    f"network_with: expected a weight {site.name!r} of shape {expected}, got {received}"
                )
            parameter = nn.Parameter(value.detach().clone())
            for alias in site.aliases:
                owner, attribute = _owner(net, alias)
                delattr(owner, attribute)
                owner.register_parameter(attribute, parameter)
        for name in self._order:  # parameters in their old order, for optimizers and flat vectors
            owner, attribute = _owner(net, name)
            if attribute in owner._parameters:
                owner._parameters[attribute] = owner._parameters.pop(attribute)
        return net

    def prior_of(self, name: str) -> Prior:
        """Return the prior of a weight."""
        key = _key(name)
        priors = cast(nn.ModuleDict, self._modules["priors"])
        return priors[key] if key in priors else self._plain_priors[key]

    def free_parameters(self) -> dict[str, nn.Parameter]:
        """Return what is learned by maximum likelihood: biases, batch-norm parameters, a learned noise scale."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        }

    def freeze(self) -> BayesianNet:
        """Hold every free parameter at its present value, so that only the sites are unknown; return the model."""
        for module in self.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, parameter.detach())
        return self

    @property
    def _network(self) -> nn.Module:
        return cast(
            nn.Module, self._modules["net"]
        )  # reading self.net would be a parameter statement

    def _draw(self, site: WeightSite) -> Tensor:
        owner, attribute = _owner(self._network, site.name)
        return self.prior_of(site.name)(site.name, getattr(owner, attribute).shape, site.group_dim)

    def _unknowns(self) -> dict[str, Tensor]:
        return self.likelihood.sites() if hasattr(self.likelihood, "sites") else {}

    def _initial(self, site: WeightSite) -> Tensor:
        """Return where the site's unit starts: the network's own weight divided by the scales of the prior."""
        owner, attribute = _owner(self._network, site.name)
        weight = getattr(owner, attribute)
        with poutine.block(), InitialValues(site.name, torch.ones_like(weight)):
            return weight / self._draw(site)

    def _run(self, weights: dict[str, Tensor], x: Tensor) -> Tensor:
        # One name per place and tie_weights=False: else functional_call leaves a sample behind where weights are tied.
        places = {alias: weights[site.name] for site in self.sites for alias in site.aliases}
        if self._reads_checked:
            return torch.func.functional_call(self.net, places, (x,), tie_weights=False)
        with _Reads() as reads:
            outputs = torch.func.functional_call(self.net, places, (x,), tie_weights=False)
        unread = [name for name, weight in weights.items() if id(weight) not in reads.seen]
        if unread:
            raise ValueError(
                f"BayesianNet: the network never reads {', '.join(unread)}: the posterior would equal the prior there. "
                "Give such a weight the prior None, or take it out of the network"
            )
        self._reads_checked = True
        return outputs

    def _plate(self, x: Tensor, y: Tensor | None) -> pyro.plate:
        everything: Any = range(len(x))  # unlike subsample_size this permutes nothing
        if y is None:
            return pyro.plate("data", len(x), subsample=everything)
        if self.subsample_size is not None and len(x) == self.num_data:
            return pyro.plate(
                "data", self.num_data, subsample_size=self.subsample_size, device=str(x.device)
            )
        return pyro.plate("data", self.num_data, subsample=everything)

    def _check(self, x: Tensor, y: Tensor | None) -> None:
        if y is not None and len(x) != len(y):
            raise ValueError(
                f"BayesianNet: x and y must have the same length, got {len(x)} and {len(y)}"
            )
        if y is not None and len(x) > self.num_data:
            raise ValueError(
                f"BayesianNet: got {len(x)} examples, but there are only num_data={self.num_data} in all"
            )


class InitialValues(Messenger):
    """Answer the latent sites of one weight with initial values, so that nothing is sampled.

    The weight's own site, or ``NAME.unit``, gets ``value``; any other site, a scale, what its prior suggests, or one.
    """

    def __init__(self, name: str, value: Tensor) -> None:
        super().__init__()
        self.names, self.initial = (name, f"{name}.unit"), value

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["value"] is not None:
            return
        default = msg["infer"].get("initial")
        if msg["name"] in self.names:
            msg["value"] = self.initial
        else:
            msg["value"] = (
                self.initial.new_ones(msg["fn"].shape())
                if default is None
                else default.to(self.initial)
            )
        msg["done"] = True


class _Reads(TorchFunctionMode):
    """Note every tensor that is handed to a torch function."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # .T reads numbers, .shape does not
        if getattr(func, "__name__", "") != "__get__" or isinstance(result, Tensor):
            self.seen.update(
                id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)
            )
        return result


def _observable(distribution: dist.TorchDistribution, y: Tensor | None) -> dist.TorchDistribution:
    """Return the distribution of the data, once they are of a dtype that it can have."""
    base = getattr(distribution, "base_dist", distribution)
    if (
        y is not None
        and not y.is_floating_point()
        and isinstance(base, torch.distributions.Bernoulli)
    ):
        raise ValueError(
            f"BayesianNet: yes-or-no data are 0. and 1. of a float dtype, got {y.dtype}; use y.float()"
        )
    return distribution


def group_dim(layer: nn.Module, parameter: str) -> int | None:
    """Return the axis that group priors act on: the input units of a dense layer, a convolution's output channels."""
    weight = getattr(layer, parameter)
    if weight.dim() < 2:
        return None
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return 1
    return 0 if isinstance(layer, nn.modules.conv._ConvNd | nn.Embedding) else 1


_NORMALISATION = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def _is_weight(layer: nn.Module, attribute: str) -> bool:
    return (
        getattr(layer, attribute).dim() >= 2
        and "bias" not in attribute
        and not isinstance(layer, _NORMALISATION)
    )


def _key(name: str) -> str:
    """Return the name as a key of a ModuleDict, which takes neither dots nor the names of its own attributes."""
    key = name.replace(".", "/")
    return f"{key}/" if hasattr(nn.ModuleDict, key) or key == "training" else key


def _owner(net: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that holds the parameter of this dotted name, and the name there."""
    path, _, attribute = name.rpartition(".")
    return net.get_submodule(path), attribute


def _places(net: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return for every parameter its first name and all the places where it stands; a tied weight stands in several."""
    names: dict[int, list[str]] = {}
    seen: set[tuple[int, str]] = set()
    for name, parameter in net.named_parameters(remove_duplicate=False):
        owner, attribute = _owner(net, name)
        if (
            id(owner),
            attribute,
        ) not in seen:  # a module registered twice has two names but is one place
            seen.add((id(owner), attribute))
            names.setdefault(id(parameter), []).append(name)
    return {places[0]: tuple(places) for places in names.values()}


def _assign(
    net: nn.Module, prior: Prior | Mapping[str | type[nn.Module], Prior | None]
) -> list[tuple[str, tuple[str, ...], Prior]]:
    """Return (name, places, prior) for every parameter that becomes uncertain."""
    places = _places(net)
    if isinstance(prior, Mapping):
        chosen = {name: _first_fit(prior, net, at) for name, at in places.items()}
        for key in prior:
            if not any(_fits(key, net, name) for at in places.values() for name in at):
                near = difflib.get_close_matches(str(key), places, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                there = ", ".join(places) or "none"
                raise ValueError(
                    f"BayesianNet: the prior for {key!r} fits no parameter; there are {there}{hint}"
                )
    else:
        chosen = {name: prior if _is_weight(*_owner(net, name)) else None for name in places}
    found = [
        (name, places[name], _checked(prior)) for name, prior in chosen.items() if prior is not None
    ]
    if not found:
        there = ", ".join(places) or "none"
        raise ValueError(
            f"BayesianNet: no weight is left to be uncertain; the network's parameters are {there}"
        )
    return found


def _first_fit(
    prior: Mapping[str | type[nn.Module], Prior | None], net: nn.Module, names: tuple[str, ...]
) -> Prior | None:
    """Return the prior under the first key that fits one of the names of a parameter."""
    return next((prior[key] for key in prior if any(_fits(key, net, name) for name in names)), None)


def _fits(key: str | type[nn.Module], net: nn.Module, name: str) -> bool:
    if isinstance(key, str):
        return fnmatch.fnmatchcase(name, key)
    owner, attribute = _owner(net, name)
    return isinstance(owner, key) and _is_weight(owner, attribute)


def _checked(prior: Any) -> Prior:
    """Refuse what is often taken for a prior: a distribution (it is callable, and would be sampled), or a class."""
    if isinstance(prior, torch.distributions.Distribution | type) or not callable(prior):
        raise TypeError(
            f"BayesianNet: expected a prior such as priors.Normal(1.0), got {prior!r}; "
            "a distribution over one weight becomes a prior in priors.Elementwise(distribution)"
        )
    return prior
