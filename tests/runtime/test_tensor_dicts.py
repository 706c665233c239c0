"""Dictionaries of tensors are mapped, stacked and concatenated name by name."""

import torch

from pyro_bnn.runtime.tensor_dicts import concatenate, map_tensors, stack

A = {"weight": torch.arange(6).view(2, 3), "bias": torch.tensor([0, 1])}
B = {"weight": torch.arange(6).view(2, 3) + 10, "bias": torch.tensor([5, 6])}


def test_a_function_is_applied_to_every_tensor():
    doubled = map_tensors(lambda value: 2 * value, A)
    assert list(doubled) == ["weight", "bias"]
    assert torch.equal(doubled["weight"], 2 * A["weight"])


def test_stacking_adds_a_first_axis():
    stacked = stack([A, B])
    assert stacked["weight"].shape == (2, 2, 3)
    assert torch.equal(stacked["bias"][1], B["bias"])


def test_concatenation_joins_along_an_axis():
    assert torch.equal(concatenate([A, B])["bias"], torch.tensor([0, 1, 5, 6]))
    joined = concatenate([{"weight": A["weight"]}, {"weight": B["weight"]}], dim=1)
    assert torch.equal(joined["weight"][0], torch.tensor([0, 1, 2, 10, 11, 12]))
