"""A run that was stopped or killed continues bit for bit as if it had not been."""

import signal
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.distributions import constraints
from torch.utils.data import DataLoader, TensorDataset

from pyro_bnn.models import linear_regression
from pyro_bnn.runtime.tensor_files import load_tensors
from pyro_bnn.training.steps import PlainStep
from tests.training.programs import digest, linear_pair, press_in_epoch_2, quick_fit, toy_data

KILLED = """
import json, os, random, signal, sys, time, torch
from torch import nn
from pyro_bnn import BayesianNet, fit, likelihoods, priors
from pyro_bnn.guides import MeanField

def run(folder):
    torch.set_num_threads(1)
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
    model = BayesianNet(net, priors.Normal(1.0), likelihoods.Gaussian(0.3), 30)
    fit(model, MeanField(model), (x, x[:, 0]), epochs=16, batch_size=8, learning_rate=0.01, seed=3,
        checkpoint=folder, resume=True, progress=False)

def saved(folder):
    try:
        with open(f"{folder}/checkpoint.json") as file:
            return json.load(file)["facts"]["step"]
    except (OSError, ValueError):
        return 0

def child(folder, steps, generator=random.Random(0)):
    pid = os.fork()
    if pid == 0:
        run(folder)
        os._exit(0)
    if steps is not None:
        while saved(folder) < steps:
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.01))  # in the middle of a step, or of writing
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1] == 0

assert child("whole", None)
kills = 0
while not child("killed", 10 * kills + 1 if kills < 4 else None):
    kills += 1
print(kills)
"""


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 2
    whole = load_tensors(tmp_path / "whole" / "checkpoint")
    killed = load_tensors(tmp_path / "killed" / "checkpoint")
    assert whole.tensors.keys() == killed.tensors.keys()
    assert all(torch.equal(value, killed.tensors[name]) for name, value in whole.tensors.items())
    for saved in (whole, killed):
        saved.facts.pop("seconds")
        saved.facts["history"].pop("seconds")
    assert whole.facts == killed.facts
    assert whole.facts["step"] == 60
    assert len(list((tmp_path / "killed").iterdir())) == 2  # no unfinished files remain


@pytest.mark.parametrize(
    "optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop]
)
@pytest.mark.parametrize("loader", [False, True])
def test_a_run_resumes_bit_for_bit_in_the_middle_of_an_epoch(
    tmp_path, optimizer, loader, monkeypatch
):
    x, y = toy_data()
    model, guide = linear_pair()

    def make(parameters, lr):
        if optimizer is torch.optim.SGD:
            return optimizer(parameters, lr=lr, momentum=0.9)
        return optimizer(parameters, lr=lr)

    def data():
        return DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True) if loader else (x, y)

    options = {
        "epochs": 5,
        "batch_size": None if loader else 8,
        "learning_rate": 1e-3,
        "optimizer": make,
    }
    whole = quick_fit(model, guide, data(), **options)
    take_step = PlainStep.__call__
    steps = []

    def press_at_seventh(self, *arguments):
        stats = take_step(self, *arguments)
        steps.append(stats)
        if len(steps) == 7:
            signal.raise_signal(signal.SIGINT)
        return stats

    monkeypatch.setattr(PlainStep, "__call__", press_at_seventh)
    interrupted = quick_fit(model, guide, data(), checkpoint=tmp_path, **options)
    assert interrupted.interrupted
    assert len(steps) == 7
    assert len(interrupted.history["loss"]) == 1
    torch.rand(5)
    again = quick_fit(model, guide, data(), checkpoint=tmp_path, resume=True, **options)
    assert digest(again) == digest(whole)
    assert not again.interrupted


def test_a_run_in_double_precision_resumes_bit_for_bit(tmp_path):
    x, y = toy_data(dtype=torch.float64)
    model, guide = (part.double() for part in linear_pair())
    whole = quick_fit(model, guide, (x, y), epochs=4)
    quick_fit(model, guide, (x, y), epochs=4, checkpoint=tmp_path, callbacks=[press_in_epoch_2])
    resumed = quick_fit(model, guide, (x, y), epochs=4, checkpoint=tmp_path, resume=True)
    assert digest(resumed) == digest(whole)


def test_a_finished_run_resumes_with_more_epochs(tmp_path):
    whole = quick_fit(*linear_pair(), toy_data(), epochs=6)
    quick_fit(*linear_pair(), toy_data(), epochs=4, batch_size=8, checkpoint=tmp_path)
    longer = quick_fit(*linear_pair(), toy_data(), epochs=6, checkpoint=tmp_path, resume=True)
    assert digest(longer) == digest(whole)
    # a run that is complete takes no further step
    again = quick_fit(*linear_pair(), toy_data(), epochs=6, checkpoint=tmp_path, resume=True)
    assert digest(again) == digest(whole)


@pytest.mark.filterwarnings(
    "ignore::pyro_bnn.variational.reparameterization.ReparameterizationWarning"
)
def test_guides_that_are_functions_or_autoguides_resume_bit_for_bit(tmp_path):
    def guide(x, y=None):
        loc = pyro.param("loc", lambda: torch.randn(3))
        pyro.sample(
            "weight",
            dist.Normal(loc, pyro.param("s", torch.tensor(0.1), constraints.positive)).to_event(1),
        )
        pyro.sample("bias", dist.Normal(pyro.param("b.loc", torch.zeros(())), 0.05))

    cases = {
        "function": (linear_regression(30, inputs=3), guide),
        "stock": (linear_pair()[0], AutoNormal(linear_pair()[0])),
    }
    for name, pair in cases.items():
        folder = tmp_path / name
        whole = quick_fit(*pair, toy_data(), epochs=4)
        quick_fit(*pair, toy_data(), epochs=4, checkpoint=folder, callbacks=[press_in_epoch_2])
        resumed = quick_fit(*pair, toy_data(), epochs=4, checkpoint=folder, resume=True)
        assert digest(resumed) == digest(whole)
