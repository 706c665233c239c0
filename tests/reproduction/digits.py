"""An experiment on the digits, and posteriors with known measures of groups."""

import torch

from pyro_bnn import BayesianNet, Posterior, likelihoods, priors
from pyro_bnn.datasets import digits, hold_out
from pyro_bnn.guides import GroupNormalJeffreys
from pyro_bnn.reproduction.experiment import Experiment


def experiment(folder):
    """Return an experiment on the digits with 137 images held out."""
    data, held_out = hold_out(digits(), 137)
    return Experiment(folder, data, held_out, progress=False)


def grouped(net):
    """Return a group posterior in which log alpha of group i of every layer is -i."""
    prior = {"*.weight": priors.NormalJeffreys()}
    model = BayesianNet(net, prior, likelihoods.Categorical(), num_data=10)
    guide = GroupNormalJeffreys(model)
    with torch.no_grad():
        for name, family in guide.families().items():
            if name.endswith(".scale"):
                order = torch.arange(family.loc.numel(), dtype=torch.float32).view_as(family.loc)
                family.loc.fill_(1.0)
                family.log_scale.copy_(-order / 2)
    return Posterior.from_guide(model, guide)
