"""A saved posterior comes back exactly, into the program it belongs to and no other."""

import copy
import subprocess
import sys

import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from pyro_bnn import BayesianNet, Posterior, fit, likelihoods, priors
from pyro_bnn.guides import FactorizedGaussian, MeanField
from pyro_bnn.models import linear_regression
from pyro_bnn.runtime.tensor_files import CheckpointError, save_tensors
from tests.posterior.programs import (
    X,
    are_equal,
    classifier,
    function_guide,
    network,
    posterior_of,
)

LOAD = """
import sys, torch
from torch import nn
from pyro_bnn import BayesianNet, Posterior, likelihoods, priors
from pyro_bnn.guides import MeanField
net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
model = BayesianNet(net, priors.Horseshoe(), likelihoods.Categorical(), 20)
x = torch.linspace(-1, 1, 15).reshape(5, 3)
for name, guide in (("guide", MeanField(model)), ("draws", None)):
    prediction = Posterior.load(f"{sys.argv[1]}/{name}", model, guide=guide).predict(x, draws=20)
    print(prediction.mean.double().flatten().tolist())
"""


def test_a_new_process_predicts_the_same(tmp_path):
    model = classifier(priors.Horseshoe())
    with torch.no_grad():
        model.net[0].bias.add_(0.5)
    guide = posterior_of(model, 0.3)
    saved = {"guide": guide, "draws": Posterior.from_draws(model, guide.draws)}
    for name, posterior in saved.items():
        posterior.save(tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = [eval(line) for line in done.stdout.splitlines()]
    for posterior, line in zip(saved.values(), lines, strict=True):
        assert posterior.predict(X, draws=20).mean.double().flatten().tolist() == line


def test_every_kind_of_guide_is_restored_exactly(tmp_path):
    y = torch.tensor([0, 1, 0, 1, 0])
    model = BayesianNet(network(), priors.Normal(), likelihoods.Categorical(), 5)
    regression = linear_regression(5, inputs=3)
    cases = {
        "mean field": (model, MeanField(model), y),
        "stock": (model, AutoNormal(model), y),
        "function": (regression, function_guide, y.float()),
    }
    for name, (program, guide, target) in cases.items():
        result = fit(
            program,
            guide,
            (X, target),
            epochs=3,
            learning_rate=0.1,
            progress=False,
            reparameterize=False,
        )
        result.posterior.save(tmp_path / name)
        fresh = copy.deepcopy(guide) if name == "mean field" else guide
        loaded = Posterior.load(tmp_path / name, program, guide=fresh)
        assert torch.equal(loaded.predict(X).mean, result.posterior.predict(X).mean), name
        assert are_equal(loaded.sample(3), result.posterior.sample(3))
    assert not list(pyro.get_param_store().keys())


def test_a_file_of_another_model_or_guide_is_refused(tmp_path):
    model = classifier()
    posterior_of(model).save(tmp_path / "run")
    wider = BayesianNet(network(outputs=3), priors.Normal(1.0), likelihoods.Categorical(), 20)
    with pytest.raises(
        CheckpointError,
        match=r"first guide.sites.2.weight.loc: expected .*\(3, 4\), found .*\(2, 4\)",
    ):
        Posterior.load(tmp_path / "run", wider, guide=MeanField(wider))
    with pytest.raises(
        CheckpointError, match=r"tensors differ, first guide\.loc\.0: expected .*, found none"
    ):
        Posterior.load(tmp_path / "run", model, guide=FactorizedGaussian(model))
    double = copy.deepcopy(model).double()
    with pytest.raises(CheckpointError, match=r"float64.*found torch.float32"):
        Posterior.load(tmp_path / "run", double, guide=MeanField(double))


def test_a_variational_posterior_is_loaded_into_its_guide(tmp_path):
    model = classifier()
    posterior_of(model).save(tmp_path / "run")
    with pytest.raises(CheckpointError, match="pass the guide"):
        Posterior.load(tmp_path / "run", model)


def test_a_missing_file_or_one_of_something_else_is_refused(tmp_path):
    model = classifier()
    with pytest.raises(CheckpointError, match="expected a file that was saved before"):
        Posterior.load(tmp_path / "nothing", model)
    save_tensors(tmp_path / "other", {}, {"kind": "network"})
    with pytest.raises(CheckpointError, match="expected a saved posterior"):
        Posterior.load(tmp_path / "other", model)


def test_draws_of_another_model_are_refused(tmp_path):
    model = classifier()
    Posterior.from_draws(model, posterior_of(model).draws).save(tmp_path / "draws")
    wider = BayesianNet(network(outputs=3), priors.Normal(1.0), likelihoods.Categorical(), 20)
    with pytest.raises(CheckpointError, match="belongs to another model"):
        Posterior.load(tmp_path / "draws", wider)
    programs = Posterior.from_draws(
        linear_regression(5, inputs=3), {"weight": torch.zeros(1, 2, 3), "bias": torch.zeros(1, 2)}
    )
    programs.save(tmp_path / "program")
    with pytest.raises(CheckpointError, match="belongs to another model"):
        Posterior.load(tmp_path / "program", model)
