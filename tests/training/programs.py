"""Models, guides and data that the tests of fit share, and ways to compare results."""

from __future__ import annotations

import hashlib
import signal

import torch
from torch import nn

from pyro_bnn import BayesianNet, fit, likelihoods, priors
from pyro_bnn.guides import MeanField


def quick_fit(model, guide, data, **options):
    """Fit for three epochs without a progress bar, unless the options say otherwise."""
    defaults = {"epochs": 3, "batch_size": 8, "learning_rate": 0.01, "progress": False}
    return fit(model, guide, data, **(defaults | options))


def toy_data(n=30, inputs=3, noise=0.3, dtype=torch.float32):
    """Return inputs and noisy targets of a linear function."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, inputs, generator=generator, dtype=dtype)
    error = noise * torch.randn(n, generator=generator, dtype=dtype)
    return x, x @ torch.linspace(-1, 1, inputs, dtype=dtype) + error


def linear_pair(n=30, inputs=3, noise=0.3):
    """Return a Bayesian linear regression and a mean-field guide."""
    torch.manual_seed(5)
    model = BayesianNet(
        nn.Linear(inputs, 1), {"*": priors.Normal(1.0)}, likelihoods.Gaussian(noise), n
    )
    return model, MeanField(model, init_scale=0.05)


def classifier_pair(n=30, classes=3, **options):
    """Return a Bayesian classifier with one hidden layer and a mean-field guide."""
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, classes))
    model = BayesianNet(net, priors.Normal(1.0), likelihoods.Categorical(), n)
    return model, MeanField(model, **options)


def exact_posterior(x, y, noise, prior=1.0):
    """Return posterior mean and precision of the weights of y = [x, 1] w + noise."""
    design = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    precision = design.T @ design / noise**2 + torch.eye(design.shape[1]).double() / prior**2
    return torch.linalg.solve(precision, design.T @ y.double() / noise**2), precision


def decaying_rate(epochs):
    """Return a learning rate that decays from 0.1 to 0.0001."""
    return lambda epoch: 0.1 * 0.001 ** (epoch / epochs)


def tensors_of(result):
    """Return all tensors that a fit learned, by name."""
    posterior = result.posterior
    tensors = {}
    for program in (posterior.model, posterior.guide, posterior.source.statements):
        if isinstance(program, nn.Module):
            tensors |= program.state_dict()
    return tensors


def digest(result):
    """Return the SHA-256 of everything that a fit learned and of its history, times aside."""
    sha = hashlib.sha256()
    for name, value in sorted(tensors_of(result).items()):
        numbers = value.contiguous().reshape(-1).view(torch.uint8).numpy()
        sha.update(name.encode() + numbers.tobytes())
    history = [result.history[key] for key in ("epoch", "loss", "data", "kl")]
    sha.update(repr(history).encode())
    return sha.hexdigest()


def press_in_epoch_2(progress):
    """Press Ctrl-C at the end of the second epoch."""
    if progress.epoch == 2:
        signal.raise_signal(signal.SIGINT)


def raise_in_epoch_2(progress):
    """Raise what Python raises for Ctrl-C at the end of the second epoch."""
    if progress.epoch == 2:
        raise KeyboardInterrupt
