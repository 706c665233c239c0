"""Sparse variational dropout, with and without clip and mask."""

import math

import pytest
import torch

from pyro_bnn import ELBO, priors
from pyro_bnn.distributions import kl_log_uniform, kl_log_uniform_approximate
from pyro_bnn.guides import (
    MeanField,
    SparseVariationalDropout,
)
from tests.guides.networks import (
    X,
    Y,
    model_with,
    spread,
)


@pytest.mark.parametrize("kl", [kl_log_uniform, kl_log_uniform_approximate])
def test_without_clip_and_mask_sparse_variational_dropout_equals_mean_field(kl):
    model = model_with({"fc.weight": priors.LogUniform(kl)}).double()
    sparse = SparseVariationalDropout(model, clip=None, mask=None)
    general = MeanField(model)
    spread(sparse)
    family, other = sparse.sites.fc.weight, general.sites.fc.weight
    other.loc.data = family.loc.data.clone()
    other.log_scale.data = family.log_variance.data / 2
    terms, expected = (ELBO(model, guide).terms(X.double(), Y) for guide in (sparse, general))
    # only the 1e-8 inside log(theta^2 + 1e-8) tells them apart
    assert terms.kl["fc.weight"].item() == pytest.approx(expected.kl["fc.weight"].item(), rel=1e-4)
    log_alpha = family.log_variance - 2 * family.loc.abs().log()
    assert terms.kl["fc.weight"].item() == pytest.approx(kl(log_alpha).sum().item(), rel=1e-4)
    mean, variance = sparse.moments()["fc.weight"]
    assert torch.allclose(mean, family.loc)
    assert torch.allclose(variance, family.log_variance.exp(), rtol=1e-3)


def test_clip_and_mask_are_the_documented_surrogate():
    model = model_with({"fc.weight": priors.LogUniform()}).double()
    guide = SparseVariationalDropout(model, clip=8.0, mask=3.0)
    family = guide.sites.fc.weight
    family.loc.data.fill_(0.1)
    log_alpha = torch.linspace(-12, 12, family.loc.numel(), dtype=torch.float64).view_as(family.loc)
    family.log_variance.data = log_alpha + math.log(0.01)
    mean, variance = guide.moments()["fc.weight"]
    clipped = log_alpha.clamp(-8, 8)
    assert torch.allclose(mean, 0.1 * (log_alpha < 3).double())
    assert torch.allclose(variance, clipped.exp() * 0.01, rtol=1e-4)
    assert torch.allclose(guide.log_alpha()["fc.weight"], clipped, atol=1e-4)
    kl = ELBO(model, guide).terms(X.double(), Y).kl["fc.weight"]
    assert kl.item() == pytest.approx(kl_log_uniform(clipped).sum().item(), rel=1e-5)
    # beyond the clip the gradient of log sigma^2 is dead
    (gradient,) = torch.autograd.grad(kl, family.log_variance)
    assert (gradient[log_alpha.abs() > 8.01] == 0).all()
    assert (gradient[log_alpha.abs() < 7.9] < 0).all()
