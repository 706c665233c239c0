"""BayesianNet: the Pyro program of a network, a prior and a likelihood."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .likelihoods import Likelihood, LikelihoodWithSites
from .priors import Prior, PriorMapping
from .priors.assignment import WeightSite, assign_priors, owner_of
from .runtime.handlers import FixedSites
from .runtime.program import Site, shape_of

__all__ = ["BayesianNet"]


class BayesianNet(PyroModule):
    r"""A neural network with uncertain weights, as a Pyro model.

    .. math:: p(y, w \mid x) = p(w) \prod_{n=1}^{N} p(y_n \mid f_w(x_n))

    The program draws the weights of ``net``, runs the network on them and observes ``y`` in a
    plate ``"data"`` of size ``num_data``. There are three ways to call it:

    - ``model(x, y)`` with a minibatch of B examples, whose log-likelihood the plate scales by N/B;
    - ``model(x, y)`` with all N examples and ``subsample_size`` set, where the plate draws the
      minibatch;
    - ``model(x)``, which also draws ``y``.

    Each call returns the outputs of the network. The network, the priors and the likelihood are
    copied. A parameter that becomes a sample site is no longer a parameter of the copy.

    Args:
        net: Any :class:`torch.nn.Module`.
        prior: One prior for all weights, that is, for the parameters of at least two axes that
            are neither biases nor part of a normalization layer. Or a mapping to priors or
            ``None`` from patterns of parameter names (``"fc1.*"``; ``"*"`` includes biases) or
            from layer types; the first key that matches counts. A parameter without a prior stays
            a parameter, learned by maximum likelihood.
        likelihood: Maps the outputs to a distribution over ``y``; see
            :mod:`pyro_bnn.likelihoods`.
        num_data: The number N of examples in the data set. It is required because the ELBO must
            not depend on the size of a minibatch.
        subsample_size: The size of the minibatches that the plate draws when all N examples are
            passed in. By default it draws none.

    Raises:
        ValueError: If a key of ``prior`` matches no parameter, if no weight gets a prior, if
            ``num_data`` or ``subsample_size`` is out of range, or, at the first call, if the
            network never reads an uncertain weight.
        TypeError: If a prior is not a function of a name, a shape and a group axis, but a
            distribution, for example.

    Example:
        >>> from pyro_bnn import likelihoods, priors
        >>> net = nn.Linear(3, 1)
        >>> model = BayesianNet(net, priors.Normal(1.0), likelihoods.Gaussian(0.1), num_data=100)
        >>> list(model.weights()), list(model.free_parameters())
        (['weight'], ['net.bias'])
        >>> model(torch.zeros(5, 3)).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        net: nn.Module,
        prior: Prior | PriorMapping,
        likelihood: Likelihood | LikelihoodWithSites,
        num_data: int,
        subsample_size: int | None = None,
    ) -> None:
        super().__init__()
        _require_sizes(num_data, subsample_size)
        _require_likelihood(likelihood)
        self.net = copy.deepcopy(net)
        self.likelihood = copy.deepcopy(likelihood)
        self.num_data = num_data
        self.subsample_size = subsample_size
        self.sites: list[WeightSite] = []
        self.priors = nn.ModuleDict()  # priors that are modules move and train with the model
        self._all_read = False  # whether a call has shown that the network reads every weight
        self._parameter_order = list(dict(net.named_parameters(remove_duplicate=False)))
        for site in assign_priors(self.net, prior):
            self._make_uncertain(site)

    def _make_uncertain(self, site: WeightSite) -> None:
        """Take a parameter out of the network, with a copy of its prior for it alone."""
        if isinstance(site.prior, nn.Module):
            prior = copy.deepcopy(site.prior)
            self.priors[_module_key(site.name)] = prior
            site = dataclasses.replace(site, prior=prior)
        self.sites.append(site)
        owner, attribute = owner_of(self.net, site.name)
        # The value stays as a buffer, because posterior means start at it.
        initial = getattr(owner, attribute).detach().clone()
        for alias in site.aliases:
            owner, attribute = owner_of(self.net, alias)
            delattr(owner, attribute)
            owner.register_buffer(attribute, initial)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Run the program and return the outputs of the network for the (mini)batch."""
        self._require_lengths(x, y)
        self._declare_parameters("priors")
        weights = {site.name: self._draw(site) for site in self.sites}
        unknowns = self._draw_unknowns()
        with self._plate(x, y) as batch:
            if isinstance(batch, Tensor) and y is not None:  # indices that the plate has drawn
                x, y = x[batch], y[batch]
            outputs = self._run(weights, x)
            # without sites there are no unknowns, and every likelihood takes the outputs alone
            distribution = cast(LikelihoodWithSites, self.likelihood)(outputs, **unknowns)
            _require_dtype(distribution, y)
            pyro.sample("y", distribution, obs=y)
        return outputs

    def weights(self) -> dict[str, Tensor]:
        """Return every uncertain weight at its initial value.

        The sample statements of the weights run, so a trace lists their sites, but nothing is
        drawn at random. Under :func:`pyro.poutine.replay` the weights are composed of the values
        of the replayed sites.
        """
        initial = {}
        for site in self.sites:
            with initial_values(site.name, self._initial(site)):
                initial[site.name] = self._draw(site)
        return initial

    def initialize(self) -> None:
        """Run the sample statements of all latent sites at their initial values.

        Unlike :meth:`weights` this includes the unknowns of the likelihood. Guides trace it to
        learn the latent sites and where to start.
        """
        weights = self.weights()
        with initial_values("", next(iter(weights.values()))):
            self._draw_unknowns()

    @property
    def names(self) -> list[str]:
        """The names of the uncertain weights."""
        return [site.name for site in self.sites]

    def network_with(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return a copy of the network as a plain module with the given weights as parameters.

        Args:
            weights: A value for every uncertain weight, by name.

        Raises:
            ValueError: If a weight is missing or has another shape than in the network.
        """
        net = copy.deepcopy(self._network)
        for site in self.sites:
            owner, attribute = owner_of(net, site.name)
            value = _require_shape(site.name, weights.get(site.name), getattr(owner, attribute))
            parameter = nn.Parameter(value.detach().clone())
            for alias in site.aliases:
                owner, attribute = owner_of(net, alias)
                delattr(owner, attribute)
                owner.register_parameter(attribute, parameter)
        _restore_order(net, self._parameter_order)
        return net

    def prior_of(self, name: str) -> Prior:
        """Return the prior of the weight of this name.

        Raises:
            KeyError: If no uncertain weight has this name.
        """
        for site in self.sites:
            if site.name == name:
                return site.prior
        raise KeyError(
            f"prior_of: expected one of the uncertain weights {', '.join(self.names)}, got {name!r}"
        )

    def free_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that are learned by maximum likelihood, by name.

        These are the parameters of the network without a prior (biases, batch normalization), a
        learned noise scale, and the learned scales of priors.
        """
        free = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                free[name] = parameter
        return free

    def freeze(self) -> BayesianNet:
        """Hold every free parameter at its present value and return the model.

        The parameters become buffers, so that the sample sites are all that is unknown.
        """
        for module in self.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, parameter.detach())
        return self

    @property
    def _network(self) -> nn.Module:
        # not self.net, which would be a parameter statement where a handler is active
        return cast(nn.Module, self._modules["net"])

    def _declare_parameters(self, submodule: str) -> None:
        """Execute the parameter statements of a submodule; ``PyroModule`` does so on access."""
        getattr(self, submodule)

    def _draw(self, site: WeightSite) -> Tensor:
        owner, attribute = owner_of(self._network, site.name)
        return site.prior(site.name, getattr(owner, attribute).shape, site.group_dim)

    def _draw_unknowns(self) -> dict[str, Tensor]:
        """Draw the unknowns of a likelihood with sites, such as its noise scale."""
        likelihood = self.likelihood
        if not hasattr(likelihood, "sites"):
            return {}
        return cast(LikelihoodWithSites, likelihood).sites()

    def _initial(self, site: WeightSite) -> Tensor:
        """Return where the unit of a weight starts: its value divided by the initial scales."""
        owner, attribute = owner_of(self._network, site.name)
        weight: Tensor = getattr(owner, attribute)
        with poutine.block(), initial_values(site.name, torch.ones_like(weight)):
            scale = self._draw(site)
        return weight / scale

    def _run(self, weights: dict[str, Tensor], x: Tensor) -> Tensor:
        """Return the outputs of the network; the first call checks that it reads every weight."""
        # Every alias with tie_weights=False: otherwise functional_call leaves the sampled tensor
        # in place of the parameter where weights are tied.
        substitutes = {}
        for site in self.sites:
            substitutes.update(dict.fromkeys(site.aliases, weights[site.name]))
        outputs: Tensor
        if self._all_read:
            outputs = torch.func.functional_call(self.net, substitutes, (x,), tie_weights=False)
            return outputs
        with _RecordReads() as reads:
            outputs = torch.func.functional_call(self.net, substitutes, (x,), tie_weights=False)
        unread = [name for name, weight in weights.items() if id(weight) not in reads.tensors]
        if unread:
            raise ValueError(
                f"BayesianNet: the network never reads {', '.join(unread)}, so the posterior there "
                "would equal the prior. Give such a weight the prior None, or remove it from the "
                "network"
            )
        self._all_read = True
        return outputs

    def _plate(self, x: Tensor, y: Tensor | None) -> pyro.plate:
        batch: Any = range(len(x))  # unlike subsample_size this draws no random permutation
        if y is None:
            return pyro.plate("data", len(x), subsample=batch)
        if self.subsample_size is not None and len(x) == self.num_data:
            return pyro.plate(
                "data", self.num_data, subsample_size=self.subsample_size, device=str(x.device)
            )
        return pyro.plate("data", self.num_data, subsample=batch)

    def _require_lengths(self, x: Tensor, y: Tensor | None) -> None:
        if y is None:
            return
        if len(x) != len(y):
            raise ValueError(
                "BayesianNet: expected x and y of the same length, "
                f"got {len(x)} and {len(y)} examples"
            )
        if len(x) > self.num_data:
            raise ValueError(
                f"BayesianNet: expected at most num_data={self.num_data} examples with targets, "
                f"got {len(x)}; num_data is the number of examples in the whole data set"
            )


def initial_values(name: str, value: Tensor) -> FixedSites:
    """Return the context in which the latent sites of one weight take their initial values.

    The weight's own site, or ``NAME.unit``, takes ``value``. Any other site, such as a scale, takes
    the initial value that its prior suggests, or one.
    """

    def initial_scale(site: Site) -> Tensor:
        suggested = site["infer"].get("initial")
        if suggested is None:
            return value.new_ones(shape_of(site["fn"]))
        return cast(Tensor, suggested).to(value)

    return FixedSites({name: value, f"{name}.unit": value}, otherwise=initial_scale)


class _RecordReads(TorchFunctionMode):
    """Record the identity of every tensor that is passed to a torch function."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: set[int] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # Of the attributes, .T reads the values of a tensor and .shape does not.
        if getattr(func, "__name__", "") != "__get__" or isinstance(result, Tensor):
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor):
                    self.tensors.add(id(leaf))
        return result


def _require_sizes(num_data: int, subsample_size: int | None) -> None:
    if num_data < 1:
        raise ValueError(
            "BayesianNet: expected num_data, the number of training examples, to be at least 1; "
            f"got {num_data}"
        )
    if subsample_size is not None and not 1 <= subsample_size <= num_data:
        raise ValueError(
            f"BayesianNet: expected subsample_size in 1 ... {num_data} (num_data), "
            f"got {subsample_size}"
        )


def _require_likelihood(likelihood: Likelihood | LikelihoodWithSites) -> None:
    if isinstance(likelihood, type) or not callable(likelihood):
        raise ValueError(
            "BayesianNet: expected a likelihood such as likelihoods.Categorical(), "
            f"got {likelihood!r}"
        )


def _require_shape(name: str, value: Tensor | None, present: Tensor) -> Tensor:
    expected = f"network_with: expected a weight {name!r} of shape {tuple(present.shape)}"
    if value is None:
        raise ValueError(f"{expected}, got none")
    if value.shape != present.shape:
        raise ValueError(f"{expected}, got one of shape {tuple(value.shape)}")
    return value


def _require_dtype(distribution: dist.TorchDistribution, y: Tensor | None) -> None:
    """Refuse binary data of an integer or boolean dtype, whose log-probability torch rejects."""
    if y is None or y.is_floating_point():
        return
    base = getattr(distribution, "base_dist", distribution)
    if isinstance(base, torch.distributions.Bernoulli):
        raise ValueError(
            "BayesianNet: expected binary data as 0. and 1. of a floating-point dtype, "
            f"got {y.dtype}; use y.float()"
        )


def _restore_order(net: nn.Module, names: list[str]) -> None:
    """Sort the parameters of each module as ``names`` lists them, for optimizers."""
    for name in names:
        owner, attribute = owner_of(net, name)
        if attribute in owner._parameters:
            owner._parameters[attribute] = owner._parameters.pop(attribute)


def _module_key(name: str) -> str:
    """Return a parameter name as a key of ``nn.ModuleDict``.

    Such a key has no dots and differs from every attribute of ``nn.ModuleDict``.
    """
    key = name.replace(".", "/")
    if key == "training" or hasattr(nn.ModuleDict, key):
        return f"{key}/"
    return key
