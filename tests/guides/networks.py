"""A network with every kind of weight, the guides that are tested with it, and their draws."""

from unittest import mock

import pyro
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_bnn import ELBO, BayesianNet, likelihoods, local_reparameterization, priors
from pyro_bnn.guides import (
    BernoulliDropout,
    FactorizedGaussian,
    GaussianDropout,
    GroupHorseshoe,
    GroupNormalJeffreys,
    MeanField,
    PointEstimate,
    SparseVariationalDropout,
)


class Net(nn.Module):
    """A convolution, a transposed convolution and a dense layer: all three group axes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, (1, 2))
        self.up = nn.ConvTranspose2d(3, 2, (2, 1))
        self.fc = nn.Linear(2 * 4 * 2, 2)

    def forward(self, x):
        return self.fc(torch.tanh(self.up(torch.tanh(self.conv(x)))).flatten(1))


def model_with(prior, net=None, **options):
    return BayesianNet(
        Net() if net is None else net, prior, likelihoods.Categorical(), num_data=8, **options
    )


X, Y = torch.linspace(-1, 1, 8 * 2 * 3 * 3).reshape(8, 2, 3, 3), torch.arange(8) % 2


GUIDES = {
    "MeanField": (MeanField, priors.Normal()),
    "MeanField horseshoe": (MeanField, priors.Horseshoe(0.5)),
    "MeanField slab": (MeanField, priors.Horseshoe(0.5, slab=1.5)),
    "MeanField decomposed slab": (MeanField, priors.Horseshoe(0.5, slab=1.5, decomposed=True)),
    "FactorizedGaussian": (FactorizedGaussian, priors.Normal()),
    "PointEstimate": (PointEstimate, priors.Normal()),
    "BernoulliDropout": (BernoulliDropout, priors.Normal()),
    "GaussianDropout": (GaussianDropout, priors.LogUniform()),
    "SparseVariationalDropout": (SparseVariationalDropout, priors.LogUniform()),
    "GroupNormalJeffreys": (GroupNormalJeffreys, priors.NormalJeffreys()),
    "GroupHorseshoe": (GroupHorseshoe, priors.Horseshoe(0.01, decomposed=True)),
    "GroupHorseshoe slab": (GroupHorseshoe, priors.Horseshoe(0.5, slab=1.5, decomposed=True)),
}


every_guide = pytest.mark.parametrize(("kind", "prior"), GUIDES.values(), ids=GUIDES)


def weights(model, guide):
    """Return one draw of the composed weights."""
    trace = poutine.trace(guide).get_trace()
    return poutine.replay(model.weights, trace=trace)()


def many_weights(model, guide, draws):
    fresh = mock.patch.object(torch.Tensor, "normal_", lambda self: torch.randn_like(self))
    with torch.no_grad(), pyro.validation_enabled(False), fresh, pyro.get_param_store().scope():
        weights(model, guide)
        return torch.vmap(lambda _: weights(model, guide), randomness="different")(
            torch.arange(draws)
        )


def spread(guide):
    """Move every parameter off its starting point, so that nothing is equal by symmetry."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in guide.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "log_scale" in name:
                p.copy_(-1.2 + 0.3 * noise)
            elif "log_variance" in name or "raw_alpha" in name:
                p.copy_(-2.4 + 0.8 * noise)
            elif "loc" in name and "scale" in name:  # the logarithm of a scale, or a real one
                p.add_(0.2 * noise)
            else:
                p.copy_(noise)
    return guide


def equal_losses(first, second, model, local=False):
    values = []
    for guide in (first, second):
        torch.manual_seed(11)
        loss = ELBO(model, local_reparameterization(guide) if local else guide)
        values.append(loss(X, Y).item())
    assert values[0] == pytest.approx(values[1], rel=1e-6)
