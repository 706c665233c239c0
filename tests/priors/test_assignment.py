"""Which parameters get which prior, and on which axis their groups lie."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_bnn import ELBO, guides, priors
from tests.network.networks import bayesian


class Recorder(nn.Module):
    """A prior that records its arguments."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def __deepcopy__(self, memo):
        return Recorder(self.calls)

    def forward(self, name, shape, group_dim):
        self.calls[name] = (tuple(shape), group_dim)
        return pyro.sample(name, dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape)))


def test_groups_are_input_units_output_channels_or_embedding_entries():
    class Zoo(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.table, self.lstm = nn.Linear(3, 4), nn.Embedding(7, 5), nn.LSTM(3, 2)
            self.conv1 = nn.Conv1d(4, 6, 3)
            self.conv2 = nn.Conv2d(4, 6, 3)
            self.conv3 = nn.Conv3d(4, 6, 3)
            self.up1, self.up2 = nn.ConvTranspose1d(4, 6, 3), nn.ConvTranspose2d(4, 6, 3)
            self.mha, self.matrix = nn.MultiheadAttention(4, 2), nn.Parameter(torch.randn(2, 3))

    calls = {}
    model = bayesian(Zoo(), {"*": Recorder(calls)})
    model.weights()
    axes = {name: axis for name, (_, axis) in calls.items() if name.endswith("weight")}
    assert axes == {
        "linear.weight": 1,  # the input units
        "table.weight": 0,  # one vector
        # the output channels
        **dict.fromkeys(("conv1.weight", "conv2.weight", "conv3.weight"), 0),
        # likewise: these kernels are (in, out, ...)
        **dict.fromkeys(("up1.weight", "up2.weight"), 1),
        **dict.fromkeys(("mha.in_proj_weight", "mha.out_proj.weight"), 1),
    }
    assert calls["lstm.weight_ih_l0"] == ((8, 3), 1)
    assert calls["matrix"] == ((2, 3), 1)
    assert calls["linear.bias"] == ((4,), None)
    assert {site.name: site.group_dim for site in model.sites} == {
        name: axis for name, (_, axis) in calls.items()
    }


def test_a_single_prior_covers_weights_but_neither_biases_nor_normalization():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.BatchNorm2d(2),
        nn.LayerNorm([2, 3, 3]),
        nn.Flatten(),
        nn.Linear(18, 2),
    )
    model = bayesian(net)
    assert model.names == ["0.weight", "4.weight"]
    assert set(model.free_parameters()) == {
        f"net.{n}" for n in ("0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "4.bias")
    }
    assert bayesian(nn.MultiheadAttention(4, 2, add_bias_kv=True)).names == [
        "in_proj_weight",
        "out_proj.weight",
    ]


def test_the_first_matching_pattern_or_layer_type_decides():
    def named(**scales):
        return {key: priors.Normal(scale) for key, scale in scales.items()}

    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Conv1d(3, 3, 1))
    everything = [f"{i}.{kind}" for i in range(3) for kind in ("weight", "bias")]

    def scales(prior):
        model = bayesian(net, prior)
        return {name: float(model.prior_of(name).scale) for name in model.names}

    assert scales({"*": priors.Normal(2.0)}) == dict.fromkeys(everything, 2.0)  # biases too
    assert scales({"*.weight": priors.Normal(2.0)}) == dict.fromkeys(everything[::2], 2.0)
    assert scales({nn.Linear: priors.Normal(2.0)}) == {"0.weight": 2.0, "1.weight": 2.0}
    assert scales({nn.Linear: priors.Normal(2.0), "*": priors.Normal(3.0)}) == {
        name: 2.0 if name in ("0.weight", "1.weight") else 3.0 for name in everything
    }
    # the first key that fits counts, whatever comes after
    assert scales({"1.*": None, "*.weight": priors.Normal(2.0)}) == {
        "0.weight": 2.0,
        "2.weight": 2.0,
    }
    assert scales({"*.weight": priors.Normal(2.0), "1.*": priors.Normal(3.0)}) == {
        "0.weight": 2.0,
        "1.weight": 2.0,
        "2.weight": 2.0,
        "1.bias": 3.0,
    }


def test_a_key_that_matches_no_parameter_raises_with_the_nearest_name():
    net = nn.Sequential(nn.Linear(3, 3))
    message = (
        r"'0\.wieght' of prior matches no parameter; the network has 0\.weight, 0\.bias; "
        r"did you mean '0\.weight'"
    )
    with pytest.raises(ValueError, match=message):
        bayesian(net, {"0.wieght": priors.Normal(), "*": priors.Normal()})
    with pytest.raises(ValueError, match=r"Conv2d.* matches no parameter"):
        bayesian(net, {nn.Conv2d: priors.Normal()})


def test_a_network_without_uncertain_weights_raises():
    with pytest.raises(ValueError, match=r"no parameter .* gets one; its parameters are none"):
        bayesian(nn.ReLU())
    message = r"no parameter .* gets one; its parameters are 0\.weight, 0\.bias"
    with pytest.raises(ValueError, match=message):
        bayesian(nn.Sequential(nn.Linear(3, 3)), {"*": None})


@pytest.mark.parametrize("wrong", [dist.Normal(0.0, 1.0), priors.Normal, 1.0], ids=str)
def test_a_distribution_a_class_or_a_number_is_not_a_prior(wrong):
    net = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(TypeError, match=r"priors\.Elementwise"):
        bayesian(net, wrong)
    with pytest.raises(TypeError, match=r"priors\.Elementwise"):
        bayesian(net, {"*": wrong})


def test_a_plain_function_is_a_prior():
    def prior(name, shape, group_dim):
        s = pyro.sample(f"{name}_scale", dist.Gamma(2.0, 2.0))
        return pyro.sample(name, dist.Normal(0.0, s).expand(shape).to_event(len(shape)))

    net, x = nn.Linear(3, 2), torch.randn(6, 3)
    model = bayesian(net, prior)
    trace = poutine.trace(model).get_trace(x, torch.randint(2, (6,)))
    assert [name for name, site in trace.iter_stochastic_nodes() if name != "data"] == [
        "weight_scale",
        "weight",
    ]
    torch.testing.assert_close(model.weights()["weight"], net.weight.detach())
    assert ELBO(model, guides.MeanField(model))(x, torch.randint(2, (6,))).isfinite()
