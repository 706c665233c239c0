"""The states of a deferred draw: one use by a layer, or one value that all examples share."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_bnn import (
    ELBO,
    BayesianNet,
    flipout,
    guides,
    likelihoods,
    local_reparameterization,
    priors,
)
from pyro_bnn.distributions import BernoulliDropout
from pyro_bnn.variational.reparameterization import (
    DeferredSample,
    ReparameterizationWarning,
    WeightReuseError,
)
from tests.variational.deferred_weights import RandomShapes, composed, deferred, normal, randn


class Twice(nn.Module):
    """A layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        return self.fc(torch.tanh(self.fc(x)))


def test_a_layer_called_twice_is_an_error_that_hide_avoids():
    model = BayesianNet(Twice(), priors.Normal(), likelihoods.Gaussian(0.1), num_data=5)
    guide, x, y = guides.MeanField(model), torch.randn(5, 3), torch.randn(5, 3)
    for wrap in (local_reparameterization, flipout):
        with pytest.raises(
            WeightReuseError, match=r"'fc\.weight' is used twice.*hide=\['fc\.weight'\]"
        ):
            ELBO(model, wrap(guide))(x, y)
        assert ELBO(model, wrap(guide, hide=["fc.weight"]))(x, y).isfinite()


def test_a_weight_under_group_scales_used_twice_is_an_error():
    w, _ = composed(
        priors.NormalJeffreys(),
        (3, 3),
        1,
        {"scale": normal(1, 3), "unit": normal(3, 3)},
        per_example_scales=True,
    )
    x = F.linear(randn(2, 3), w)
    with pytest.raises(WeightReuseError, match=r"w\.unit"):
        F.linear(x, w)


@pytest.mark.filterwarnings(
    "ignore::pyro_bnn.variational.reparameterization.ReparameterizationWarning"
)
def test_a_weight_both_used_by_a_layer_and_materialized_is_an_error():
    x = randn(2, 3)
    w = deferred(normal(3, 3))
    F.linear(x, w)
    with pytest.raises(WeightReuseError, match="'w'"):
        w.exp()
    w = deferred(normal(3, 3))
    w.exp()
    with pytest.raises(WeightReuseError, match="'w'"):
        F.linear(x, w)
    w = deferred(normal(3, 3))
    x @ w.T
    with pytest.raises(WeightReuseError, match="'w'"):  # a derived sample is the same weight
        x @ (2 * w)
    w, b = deferred(normal(3, 3)), deferred(normal(3))
    F.linear(x, w, b)
    with pytest.raises(WeightReuseError, match="'w'"):  # and so is a bias
        b.exp()


def test_a_materialized_weight_is_drawn_once_with_one_warning():
    w = deferred(normal(4, 3))
    with pytest.warns(
        ReparameterizationWarning, match="site 'w': exp needs the weight itself"
    ) as caught:
        first, second, third = w.exp().log(), torch.einsum("oi->io", w).T, (w * 2).cumsum(1) / 2
    assert len(caught) == 1
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first.cumsum(1), third)
    assert not isinstance(second, DeferredSample)


def test_a_materialized_weight_includes_its_scales():
    distributions = {"scale": normal(1, 3), "unit": normal(4, 3)}
    w, trace = composed(priors.NormalJeffreys(), (4, 3), 1, distributions, per_example_scales=True)
    with pytest.warns(ReparameterizationWarning, match=r"'w\.unit': cumsum"):
        read = (2 * w).cumsum(0)
    z, unit = (trace.nodes[f"w.{part}"]["value"].draw.value for part in ("scale", "unit"))
    torch.testing.assert_close(read, (2 * unit * z).cumsum(0))


def test_each_site_warns_once_in_a_run():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.table = nn.Conv2d(1, 2, 3), nn.Embedding(3, 2)

        def forward(self, x):
            return self.conv(x).mean((2, 3)) @ self.table(torch.tensor([0, 1])).T

    model = BayesianNet(Net(), priors.Normal(), likelihoods.Categorical(), num_data=5)
    loss = ELBO(model, local_reparameterization(guides.MeanField(model)))
    x, y = torch.randn(5, 1, 4, 4), torch.randint(2, (5,))
    with pytest.warns(ReparameterizationWarning) as caught:
        losses = [loss(x, y) for _ in range(3)]
    assert all(value.isfinite() for value in losses)
    messages = sorted(str(w.message) for w in caught)
    assert len(messages) == 2
    assert "site 'conv.weight'" in messages[0]
    assert "covariances between positions" in messages[0]
    assert "site 'table.weight': embedding needs the weight itself" in messages[1]


def test_rules_that_are_exact_for_positions_do_not_warn():
    x = randn(2, 2, 4, 5)
    F.conv2d(x, deferred(normal(3, 2, 3, 3), flipout))
    F.conv2d(x, deferred(BernoulliDropout(randn(3, 2, 3, 3), 0.5, 0)))
    F.linear(x, deferred(BernoulliDropout(randn(3, 5), 0.5, 1)))


def test_printing_a_sample_and_reading_its_shape_draw_nothing():
    w = deferred(normal(4, 3))
    with RandomShapes() as random:
        assert repr(w) == str(w) == "DeferredSample('w', Normal, shape=(4, 3))"
        assert (w.shape, w.size(1), w.dim(), len(w), w.numel()) == ((4, 3), 3, 2, 4, 12)
        assert (w.dtype, w.device.type, w.is_floating_point()) == (torch.float64, "cpu", True)
    assert not random.shapes
    assert w.draw.value is None
