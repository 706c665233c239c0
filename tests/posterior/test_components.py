"""The predictive distribution of a network as a few named tensors."""

import pyro.distributions as dist
import torch

from pyro_bnn.posterior.components import components_of, entropy, function_values, kind_of


def test_components_are_named_by_the_kind_of_data():
    probs = torch.tensor([[0.2, 0.8]])
    parts = components_of(dist.Categorical(probs))
    assert torch.allclose(parts["probs"], probs)
    assert torch.allclose(parts["log_probs"], probs.log())
    assert set(components_of(dist.Normal(torch.zeros(2, 3), 1.0).to_event(1))) == {"mean", "stddev"}
    assert components_of(dist.Normal(torch.zeros(2, 3), 1.0).to_event(1))["stddev"].shape == (2, 3)
    assert set(components_of(dist.StudentT(5.0, torch.zeros(2), 1.0))) == {"mean", "spread"}


def test_the_names_tell_kind_and_function_values():
    zeros = torch.zeros(2)
    cases = {
        "classes": (dist.Categorical(logits=torch.zeros(2, 3)), torch.full((2, 3), 1 / 3)),
        "binary": (dist.Bernoulli(logits=zeros), torch.full((2,), 0.5)),
        "real": (dist.Normal(zeros + 4, 1.0), torch.full((2,), 4.0)),
        "other": (dist.Poisson(zeros + 2), torch.full((2,), 2.0)),
    }
    for kind, (distribution, values) in cases.items():
        components = components_of(distribution)
        assert kind_of(components) == kind
        assert torch.allclose(function_values(components), values)


def test_entropies_of_ones_and_of_two_classes_agree():
    ones = torch.tensor([0.0, 0.2, 1.0])
    classes = torch.stack([1 - ones, ones], -1)
    assert torch.equal(entropy(ones, "binary"), entropy(classes, "classes"))
    assert torch.allclose(entropy(ones, "binary")[1], dist.Bernoulli(0.2).entropy())
