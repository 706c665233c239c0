"""Binary dropout draws a mask for each example, of the inputs or of the channels of a layer."""

import pytest
import torch
import torch.nn.functional as F

from pyro_bnn.distributions import BernoulliDropout
from tests.variational.deferred_weights import deferred, randn


def assert_masked(out, candidates, probabilities):
    """Check that every row is a candidate, each with its probability (5 standard errors)."""
    distances = torch.cdist(out.flatten(1), candidates.flatten(1))
    nearest, which = distances.min(1)
    assert nearest.max() < 1e-6
    frequencies = torch.bincount(which, minlength=len(candidates)) / len(out)
    error = (probabilities * (1 - probabilities) / len(out)).sqrt()
    assert ((frequencies - probabilities).abs() <= 5 * error).all()


def all_masks(k):
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * k)


@pytest.mark.parametrize("group_dim", [1, -1])
@pytest.mark.parametrize(
    "rate", [0.3, torch.tensor([[0.2, 0.5, 0.9]]).double(), torch.tensor([0.2, 0.5, 0.9]).double()]
)
@pytest.mark.parametrize("form", ["linear", "x @ w.T", "x @ w", "scaled"])
def test_binary_dropout_masks_the_inputs_of_each_example(group_dim, rate, form):
    x, loc, bias = randn(1, 3), randn(4, 3), randn(4)
    q = BernoulliDropout(loc, rate, group_dim)
    if form == "x @ w":
        if isinstance(rate, torch.Tensor):
            rate = rate.reshape(3, 1)
        q = BernoulliDropout(loc.T, rate, 0 if group_dim == 1 else -2)
    w, rows = deferred(q), x.expand(5000, 3)
    calls = {
        "linear": lambda: F.linear(rows, w, bias),
        "x @ w.T": lambda: rows @ w.T + bias,
        "x @ w": lambda: rows @ w + bias,
        "scaled": lambda: F.linear(rows, w * 2, bias) / 2 + bias / 2,
    }
    rates = (
        torch.as_tensor(rate, dtype=torch.float64).expand(1, 3)
        if not isinstance(rate, torch.Tensor)
        else rate.reshape(1, 3)
    )
    masks = all_masks(3)
    probabilities = torch.where(masks > 0, 1 - rates, rates).prod(1)
    assert_masked(calls[form](), (x * masks) @ loc.T + bias, probabilities)


def test_binary_dropout_of_a_vector_of_weights():
    x, loc = randn(1, 3), randn(3)
    out = x.expand(5000, 3) @ deferred(BernoulliDropout(loc, 0.4, 0))
    masks = all_masks(3)
    assert_masked(
        out[:, None], ((x * masks) @ loc)[:, None], (0.6**masks * 0.4 ** (1 - masks)).prod(1)
    )


@pytest.mark.parametrize("rate", [0.3, torch.tensor([0.2, 0.7]).double().reshape(2, 1, 1, 1)])
@pytest.mark.parametrize("groups", [1, 2])
def test_binary_dropout_masks_the_channels_of_a_convolution(rate, groups):
    x, loc, bias = randn(1, 2, 4, 5), randn(2, 2 // groups, 3, 5), randn(2)
    out = F.conv2d(
        x.expand(4000, -1, -1, -1),
        deferred(BernoulliDropout(loc, rate, 0)),
        bias,
        padding=1,
        groups=groups,
    )
    masks, rates = all_masks(2), torch.as_tensor(rate, dtype=torch.float64).flatten()
    plain = F.conv2d(x, loc, padding=1, groups=groups)
    candidates = plain * masks[:, :, None, None] + bias[:, None, None]
    assert_masked(out, candidates, torch.where(masks > 0, 1 - rates, rates).prod(1))


def test_binary_dropout_masks_the_channels_of_a_transposed_convolution():
    x, loc = randn(1, 2, 2, 2), randn(2, 3, 3, 5)
    for axis in (0, 1):  # the inputs, the outputs
        out = F.conv_transpose2d(
            x.expand(4000, -1, -1, -1), deferred(BernoulliDropout(loc, 0.4, axis))
        )
        masks = all_masks(loc.shape[axis])
        masked = [loc * m.reshape([-1 if i == axis else 1 for i in range(4)]) for m in masks]
        candidates = torch.cat([F.conv_transpose2d(x, w) for w in masked])
        assert_masked(out, candidates, (0.6**masks * 0.4 ** (1 - masks)).prod(1))


def test_binary_dropout_without_groups_is_sampled_as_usual():
    assert type(deferred(BernoulliDropout(randn(4, 3), 0.5))) is torch.Tensor
