"""The posterior restricted to the remaining weights: its parameters, its KL, and training."""

import pytest
import torch
from torch import nn

from pyro_bnn import (
    ELBO,
    BayesianNet,
    Posterior,
    compression,
    fit,
    likelihoods,
    local_reparameterization,
    priors,
)
from pyro_bnn.compression.pruning.restriction import restrict
from pyro_bnn.guides import GroupHorseshoe, GroupNormalJeffreys, MeanField, SparseVariationalDropout
from pyro_bnn.models import MLP, LeNet5

GROUPS = {
    "group": (priors.NormalJeffreys(), GroupNormalJeffreys),
    "horseshoe": (priors.Horseshoe(decomposed=True), GroupHorseshoe),
    "mean field": (priors.Horseshoe(), MeanField),
}


def sparse(net, dead):
    """Return a Sparse VD posterior in which the rows ``dead`` of the first layer are noise."""
    model = BayesianNet(net, priors.LogUniform(), likelihoods.Categorical(), num_data=20)
    guide = SparseVariationalDropout(model)
    family = guide.families()[model.names[0]]
    with torch.no_grad():
        family.log_variance[dead] = 10.0
    return Posterior.from_guide(model, guide)


def test_the_remaining_weights_keep_their_variational_parameters():
    torch.manual_seed(0)
    posterior = sparse(MLP(4, (5,), 3), [1, 3])
    pruned = compression.prune(posterior)
    model, guide = restrict(posterior, pruned)
    before, after = posterior.guide.families(), guide.families()
    left = torch.tensor([0, 2, 4])
    for name in ("loc", "log_variance"):
        assert torch.equal(
            getattr(after["1.weight"], name), getattr(before["1.weight"], name)[left]
        )
        assert torch.equal(
            getattr(after["3.weight"], name), getattr(before["3.weight"], name)[:, left]
        )
    # nothing was folded, so the smaller model at the means of its guide is the pruned network
    x = torch.randn(7, 4)
    at_means = Posterior.from_guide(model, guide).mean_network()
    torch.testing.assert_close(at_means(x), pruned.module(x), rtol=1e-5, atol=1e-6)


def test_the_kl_of_the_remaining_units_is_unchanged():
    torch.manual_seed(0)
    posterior = sparse(MLP(4, (5,), 3), [])
    model, guide = restrict(posterior, compression.prune(posterior))
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    terms = []
    for pair in ((posterior.model, posterior.guide), (model, guide)):
        loss = ELBO(pair[0], local_reparameterization(pair[1]))
        terms.append({name: float(value.detach()) for name, value in loss.terms(x, y).kl.items()})
    assert terms[0] == pytest.approx(terms[1])


@pytest.mark.parametrize(("prior", "family"), GROUPS.values(), ids=GROUPS)
def test_scales_of_groups_are_restricted_with_their_weights(prior, family):
    torch.manual_seed(0)
    model = BayesianNet(
        LeNet5(size=16, filters=(4, 5), hidden=6), prior, likelihoods.Categorical(), num_data=20
    )
    posterior = Posterior.from_guide(model, family(model))
    shape = {name: value.shape for name, value in model.weights().items()}
    gone = posterior.guide.families()["conv1.weight.unit"].loc
    with torch.no_grad():
        gone[2] = 0.0  # a filter without weights: its channel is a constant
    pruned = compression.prune(posterior, threshold=1e9, group_threshold=1e9)
    smaller, guide = restrict(posterior, pruned)
    assert pruned.kept["conv1.weight"][0].tolist() == [0, 1, 3]
    for name, family in guide.families().items():
        stem = name.split(".weight")[0] + ".weight"
        for old, new in zip(
            posterior.guide.families()[name].parameters(), family.parameters(), strict=True
        ):
            expected = [
                len(index) if size == full else size
                for size, full, index in zip(old.shape, shape[stem], pruned.kept[stem], strict=True)
            ]
            assert list(new.shape) == expected
    result = fit(
        smaller,
        guide,
        (torch.randn(20, 1, 16, 16), torch.randint(10, (20,))),
        epochs=2,
        reparameterize=False,
        progress=False,
    )
    assert all(torch.isfinite(torch.tensor(result.history["loss"])))


def test_a_posterior_without_a_factorized_guide_is_an_error():
    model = BayesianNet(nn.Linear(2, 2), priors.Normal(1.0), likelihoods.Categorical(), num_data=5)
    draws = Posterior.from_draws(model, {"weight": torch.randn(1, 50, 2, 2) + 5})
    with pytest.raises(TypeError, match=r"^restrict: .*got draws of a sampler"):
        restrict(draws, compression.prune(draws))


def test_a_pruned_network_of_another_posterior_is_an_error():
    posterior = sparse(MLP(4, (5,), 3), [1])
    other = compression.prune(sparse(nn.Sequential(nn.Linear(4, 3)), []))
    with pytest.raises(ValueError, match=r"1\.weight, 3\.weight"):
        restrict(posterior, other)
