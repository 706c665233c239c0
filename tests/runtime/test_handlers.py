"""FixedSites gives latent sites their values and touches no other statement."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from pyro_bnn.runtime.handlers import FixedSites
from pyro_bnn.runtime.program import sample_sites


def program():
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
    with pyro.plate("data", 10, subsample_size=3) as rows:
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.full((3,), 7.0))
    return weight, scale, rows


def test_named_sites_take_their_values_and_stay_latent():
    values = {"weight": torch.tensor([1.0, 2.0]), "scale": torch.tensor(3.0)}
    with FixedSites(values):
        trace = poutine.trace(program).get_trace()
    for name, value in values.items():
        assert torch.equal(trace.nodes[name]["value"], value)
        assert not trace.nodes[name]["is_observed"]


def test_data_and_minibatches_are_left_alone():
    answered = []

    def answer(site):
        answered.append(site["name"])
        return torch.zeros(())

    with FixedSites({"y": torch.zeros(3), "data": torch.zeros(3)}, otherwise=answer):
        trace = poutine.trace(program).get_trace()
    assert answered == ["weight", "scale"]
    assert torch.equal(trace.nodes["y"]["value"], torch.full((3,), 7.0))
    assert len(set(trace.nodes["data"]["value"].tolist())) == 3


def test_a_site_without_an_answer_is_drawn():
    torch.manual_seed(0)
    with FixedSites({"scale": torch.tensor(3.0)}, otherwise=lambda site: None):
        weight, scale, _ = program()
    torch.manual_seed(0)
    assert torch.equal(weight, dist.Normal(torch.zeros(2), 1.0).sample())
    assert scale == 3


def test_values_win_over_handlers_inside_and_answers_do_not():
    values = {"weight": torch.tensor([1.0, 2.0])}
    inner = FixedSites({"weight": torch.zeros(2), "scale": torch.tensor(4.0)})
    with FixedSites(values, otherwise=lambda site: torch.tensor(5.0)), inner:
        trace = poutine.trace(program).get_trace()
    latent = {name: site for name, site in sample_sites(trace) if not site["is_observed"]}
    assert torch.equal(latent["weight"]["value"], values["weight"])
    assert latent["scale"]["value"] == 4
