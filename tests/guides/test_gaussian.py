"""FactorizedGaussian restates MeanField."""

import pytest

from pyro_bnn import priors
from pyro_bnn.guides import (
    FactorizedGaussian,
    MeanField,
)
from tests.guides.networks import equal_losses, model_with, spread


@pytest.mark.filterwarnings("ignore:site")
@pytest.mark.parametrize("local", [False, True])
def test_the_factorized_gaussian_equals_mean_field(local):
    model = model_with(priors.Normal(0.7))
    written, general = FactorizedGaussian(model), MeanField(model)
    spread(written)
    for name, loc, log_scale in zip(written.names, written.loc, written.log_scale, strict=True):
        family = general.sites.get_submodule(name)
        family.loc.data, family.log_scale.data = loc.data.clone(), log_scale.data.clone()
    equal_losses(written, general, model, local)
