"""The outputs of a BayesianNet are those of the plain network with the same weights.

The caller's network and the parameter objects of the copy stay as they are.
"""

import copy

import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_bnn import ELBO, guides, local_reparameterization, priors
from tests.network.networks import (
    NETWORKS,
    ConvNet,
    bayesian,
    load,
    networks,
    new_weights,
)


def tensors_of(net):
    """Return every parameter and buffer object of every module, with its place."""
    slots = {}
    for module_name, module in net.named_modules():
        for kind in (module._parameters, module._buffers):
            slots |= {f"{module_name}.{name}": tensor for name, tensor in kind.items()}
    return slots


def assert_same_objects(before, after):
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)


@networks
@pytest.mark.parametrize("mode", ["train", "eval", "eval without gradients"])
def test_outputs_are_those_of_the_plain_network_with_these_weights(name, mode):
    make, inputs = NETWORKS[name]
    net, x = make().train(mode == "train"), inputs()
    model = bayesian(net).train(mode == "train")
    for _ in range(2):  # the first pass also checks that all weights are read
        weights = new_weights(model)
        plain = load(net, model, weights)
        with torch.set_grad_enabled(mode != "eval without gradients"):
            outputs = poutine.condition(model, weights)(x)
            expected = plain(x)
        torch.testing.assert_close(outputs, expected)
        # the network's own weights would give other outputs
        assert (outputs - net(x)).abs().max() > 1e-3


@networks
def test_the_initial_weights_are_the_networks_own(name):
    make, inputs = NETWORKS[name]
    net, x = make().eval(), inputs()
    model = bayesian(net).eval()
    for weight, value in model.weights().items():
        torch.testing.assert_close(value, net.get_parameter(weight).detach())
    torch.testing.assert_close(poutine.condition(model, model.weights())(x), net(x))


@networks
def test_a_forward_pass_leaves_the_parameter_objects_in_place(name):
    make, inputs = NETWORKS[name]
    model, x = bayesian(make()), inputs()
    guide = guides.MeanField(model)
    y = torch.randint(2, (6,))
    before = tensors_of(model.net)
    ELBO(model, guide)(x, y).backward()
    model(x)
    assert_same_objects(before, tensors_of(model.net))
    copied = copy.deepcopy(model)  # fails if a sample with a gradient history remains
    torch.testing.assert_close(
        poutine.condition(copied.eval(), model.weights())(x),
        poutine.condition(model.eval(), model.weights())(x),
    )


@networks
def test_a_failed_forward_pass_leaves_the_parameter_objects_in_place(name):
    make, inputs = NETWORKS[name]
    net, x = make(), inputs()

    def fail(module, args, output):
        raise ArithmeticError("inside the forward pass")

    model = bayesian(net)
    before = tensors_of(model.net)
    handle = model.net.register_forward_hook(fail)
    for checked in (False, True):
        model._all_read = checked
        with pytest.raises(ArithmeticError, match="inside the forward pass"):
            model(x)
        assert_same_objects(before, tensors_of(model.net))
    handle.remove()
    assert model(x).shape[0] == 6


@networks
def test_the_callers_network_is_untouched(name):
    make, inputs = NETWORKS[name]
    net, x = make(), inputs()
    before, state = tensors_of(net), copy.deepcopy(net.state_dict())
    model = bayesian(net)
    ELBO(model, guides.MeanField(model))(x, torch.randint(2, (6,))).backward()
    model.freeze()
    assert_same_objects(before, tensors_of(net))
    for key, value in net.state_dict().items():
        torch.testing.assert_close(value, state[key])
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


@networks
@pytest.mark.filterwarnings(
    "ignore::pyro_bnn.variational.reparameterization.ReparameterizationWarning"
)
def test_local_reparameterization_with_little_noise_gives_the_networks_outputs(name):
    make, inputs = NETWORKS[name]
    model, x = bayesian(make()), inputs()
    guide = guides.MeanField(model, init_scale=1e-6)
    twice = {
        "tied weights": ["table.weight", "encoder.weight", "decoder.weight"],
        "shared layer": ["a.weight"],
    }
    loss = ELBO(model.eval(), local_reparameterization(guide, hide=twice.get(name, [])))
    outputs = loss.trace(x, torch.randint(2, (6,))).nodes["y"]["fn"].logits
    expected = model.network_with(model.weights())(x).log_softmax(-1)
    torch.testing.assert_close(outputs, expected, atol=2e-2, rtol=0)


def test_batch_norm_updates_its_running_statistics_in_training_only():
    net, x = ConvNet(), torch.randn(6, 1, 5, 5)
    model = bayesian(net)
    weights = new_weights(model)
    plain = load(net, model, weights)
    poutine.condition(model, weights)(x)
    plain(x)
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(
            getattr(model.net.features[1], key), getattr(plain.features[1], key)
        )
    assert (net.features[1].running_mean == 0).all()
    before = model.net.features[1].running_mean.clone()
    poutine.condition(model.eval(), weights)(x)
    assert (model.net.features[1].running_mean == before).all()


def test_a_weight_that_the_network_never_reads_is_an_error():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(3, 2), nn.Linear(3, 2)
            self.shape_only = nn.Linear(3, 2)

        def forward(self, x):
            assert self.shape_only.weight.shape == (2, 3)
            return self.used(x)

    with pytest.raises(
        ValueError, match=r"never reads spare\.weight, shape_only\.weight, .*prior None"
    ):
        bayesian(Net())(torch.randn(6, 3))
    model = bayesian(Net())
    guide = guides.MeanField(model)
    with pytest.raises(ValueError, match=r"never reads spare\.weight, shape_only\.weight"):
        ELBO(model, local_reparameterization(guide))(torch.randn(6, 3), torch.randint(2, (6,)))
    assert bayesian(Net(), {"spare.*": None, "shape_only.*": None, nn.Linear: priors.Normal()})(
        torch.randn(6, 3)
    ).shape == (6, 2)
