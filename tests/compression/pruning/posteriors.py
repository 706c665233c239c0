"""What the tests of pruning share: small models, and posteriors whose masks are known."""

import torch
from torch import nn

from pyro_bnn import BayesianNet, Posterior, likelihoods
from pyro_bnn.guides import MeanField


def model_of(prior, n=50):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    return BayesianNet(net, prior, likelihoods.Categorical(), n)


def scatter(guide, seed=1):
    """Spread the parameters, so that some weights are signal and some are noise."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in guide.named_parameters():
            spread = 1.5 if name.endswith(("log_scale", "log_variance")) else 0.3
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
            if name.endswith("log_scale"):
                parameter.clamp_(max=1.0)
    return guide


def network_of(posterior, masks):
    """Return the network at full size with zeros outside of the masks, without any pruning code."""
    return posterior.model.network_with(
        {name: posterior.moments()[name][0] * mask for name, mask in masks.items()}
    )


def same_function(pruned, net, x):
    expected = net.eval()(x).detach()
    assert torch.allclose(
        pruned.module(x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())
    )
    assert torch.allclose(
        pruned.masked(x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())
    )
    return True


@torch.no_grad()
def signal_in(model, keep):
    """Return a posterior of known masks: all means are 1, the deviations 0.1 or 1000."""
    guide = MeanField(model)
    for name, family in guide.families().items():
        family.loc.fill_(1.0)
        family.log_scale.copy_(torch.where(keep[name], 0.1, 1000.0).log())
    return Posterior.from_guide(model, guide)


def sparse(model, seed=0):
    """Return such a posterior with random dead rows and single zeros, and its masks."""
    generator = torch.Generator().manual_seed(seed)
    keep = {
        name: torch.rand(value.shape, generator=generator) > 0.4
        for name, value in model.weights().items()
    }
    for mask in keep.values():
        mask[torch.rand(len(mask), generator=generator) < 0.3] = False
    return signal_in(model, keep), keep


def two_inputs_of_eight(n=256):
    """Return data in which inputs 0 and 3 matter, at 5 and 7 noise deviations each."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 8, generator=generator)
    y = 1.5 * x[:, 0] - 2.0 * x[:, 3] + 0.3 * torch.randn(n, generator=generator)
    return x, y
