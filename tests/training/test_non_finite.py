"""NaN and infinity end a fit, with an error that names where they arose."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_bnn import BayesianNet, priors
from pyro_bnn.guides import MeanField
from pyro_bnn.runtime.tensor_files import load_tensors
from pyro_bnn.training import NonFiniteError, fitting
from tests.training.programs import classifier_pair, quick_fit, toy_data


class Poison(nn.Module):
    """A guide that sets one parameter, or the gradient of one, to NaN at a given forward pass."""

    def __init__(self, guide, at, target, gradient):
        super().__init__()
        self.guide = guide
        self.at = at
        self.target = target
        self.gradient = gradient
        self.count = 0

    def forward(self, *args):
        self.count += 1
        if self.count == self.at + 2:  # one for the dry run
            parameter = dict(self.guide.named_parameters())[self.target]
            if self.gradient:
                parameter.register_hook(lambda grad: torch.full_like(grad, math.nan))
            else:
                parameter.data.flatten()[0] = math.nan
        return self.guide(*args)


@pytest.mark.parametrize("site", ["0.weight", "2.weight"])
@pytest.mark.parametrize("gradient", [False, True])
def test_the_error_names_step_epoch_and_site_of_the_first_nan(site, gradient):
    x, _ = toy_data()
    model, guide = classifier_pair()
    poisoned = Poison(guide, at=3, target=f"sites.{site}.loc", gradient=gradient)
    expected = (
        rf"the gradient of guide.*sites.{site}.loc is"
        if gradient
        else rf"the loss, at {site}, the data"
    )
    with pytest.raises(NonFiniteError, match=rf"step 3 \(epoch 0.80\): {expected}"):
        quick_fit(model, poisoned, (x, torch.arange(30) % 3))


def test_nan_in_the_log_likelihood_is_attributed_to_the_data():
    x, y = toy_data()

    def nan_at_last(outputs):
        nan_at_last.count += 1
        return dist.Normal(
            outputs.squeeze(-1) * (math.nan if nan_at_last.count == 4 else 1),
            1.0,
            validate_args=False,
        )

    nan_at_last.count = 0
    model = BayesianNet(nn.Linear(3, 1), priors.Normal(), nan_at_last, 30)
    with pytest.raises(
        NonFiniteError, match=r"step 2 .*the loss, at the data \(log-likelihood\) is not finite"
    ):
        quick_fit(model, MeanField(model), (x, y))


def test_nan_reaches_neither_the_parameters_nor_the_checkpoint(tmp_path, monkeypatch):
    x, _ = toy_data()
    model, guide = classifier_pair()
    poisoned = Poison(guide, at=9, target="sites.2.weight.loc", gradient=True)
    runs = []
    begin_run = fitting.begin_run

    def spy(*arguments):
        runs.append(begin_run(*arguments))
        return runs[-1]

    monkeypatch.setattr(fitting, "begin_run", spy)
    with pytest.raises(NonFiniteError, match="the last checkpoint is in") as error:
        quick_fit(model, poisoned, (x, torch.arange(30) % 3), checkpoint=tmp_path / "run")
    assert str(tmp_path / "run") in str(error.value)
    assert all(bool(p.isfinite().all()) for p in runs[0].loss.parameters())
    tensors, facts = load_tensors(tmp_path / "run" / "checkpoint")
    assert facts["step"] == 8
    assert all(bool(t.isfinite().all()) for t in tensors.values())


def test_an_infinite_kl_is_an_error_even_with_weight_zero():
    model, guide = classifier_pair()
    guide.sites.get_submodule("0.weight").log_scale.data.fill_(-math.inf)
    with pytest.raises(NonFiniteError, match=r"the loss, at 0.weight is not finite"):
        quick_fit(model, guide, (toy_data()[0], torch.arange(30) % 3), kl_weight=0.0)
