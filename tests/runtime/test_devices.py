"""Devices of programs, and checks of requested ones."""

import pytest
import torch
from torch import nn

from pyro_bnn.runtime.devices import device_of, require_device


def test_the_device_is_that_of_the_first_parameter_or_buffer():
    buffered = nn.Module()
    buffered.register_buffer("scale", torch.ones(1, device="meta"))
    assert device_of(lambda x: x, nn.ReLU(), buffered, nn.Linear(1, 1)) == torch.device("meta")


def test_programs_without_tensors_lie_on_the_default_device():
    assert device_of(lambda x: x, nn.ReLU()) == torch.get_default_device()


def test_an_unavailable_device_is_an_error_that_names_the_caller_and_the_choices():
    assert require_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"^reproduce: the device 'tpu:1' .*choose one of: cpu"):
        require_device("tpu:1", caller="reproduce")
