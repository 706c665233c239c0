"""Horseshoe posteriors: their divergences, and the mode by which groups are pruned."""

import math

import pytest
import torch
from scipy import integrate, stats

from pyro_bnn import (
    ELBO,
    Posterior,
    priors,
)
from pyro_bnn.compression import prune
from pyro_bnn.guides import (
    GroupHorseshoe,
    MeanField,
)
from tests.guides.group_networks import X as IMAGES
from tests.guides.group_networks import Y as LABELS
from tests.guides.group_networks import model_of
from tests.guides.networks import X, Y, model_with, spread


def test_divergences_of_the_group_horseshoe_equal_reference_values():
    # KL(LN(mu, v) || Gamma(1/2, scale t)) and KL(LN(mu, v) || InvGamma(1/2, 1))
    # at mu = -1.2, v = 0.3, t = 0.4
    model = model_with({"fc.weight": priors.Horseshoe(math.sqrt(0.4), decomposed=True)})
    guide = GroupHorseshoe(model)
    s = guide.sites.fc.weight.global_scale
    for factor in (s.gamma, s.inverse_gamma):
        factor.loc.data.fill_(-1.2)
        factor.log_scale.data.fill_(0.5 * math.log(0.3))
    kl = ELBO(model, guide).terms(X, Y).kl
    assert kl["fc.weight.global_scale.gamma"].item() == pytest.approx(0.77211, abs=1e-5)
    assert kl["fc.weight.global_scale.inverse_gamma"].item() == pytest.approx(3.01284, abs=1e-5)


def test_the_log_scale_of_a_group_horseshoe_is_normal():
    model = model_with({"fc.weight": priors.Horseshoe(0.1, decomposed=True)})
    guide = spread(GroupHorseshoe(model))
    z = guide.sites.fc.weight.scale
    m = (z.gamma.loc + z.inverse_gamma.loc).detach() / 2
    v = ((2 * z.gamma.log_scale).exp() + (2 * z.inverse_gamma.log_scale).exp()).detach() / 4
    density = torch.distributions.LogNormal(m, v.sqrt())
    mode = (m - v).exp()
    assert torch.allclose(guide.negative_log_mode()["fc.weight"], -mode.log())
    for shift in (0.99, 1.01):
        assert (density.log_prob(mode) > density.log_prob(shift * mode)).all()
    # the initial divergence is small whatever tau, where starting s_a at one would cost s_a / tau^2
    tiny = model_with({"fc.weight": priors.Horseshoe(1e-5, decomposed=True)})
    kl = ELBO(tiny, GroupHorseshoe(tiny)).terms(X, Y).kl
    assert sum(v.item() for name, v in kl.items() if "global" in name) < 40


@pytest.mark.parametrize("tau", [1e-3, 0.5])
def test_the_direct_horseshoe_has_exact_divergences_and_prunes_groups_by_mode(tau):
    model = model_of(priors.Horseshoe(tau))
    guide = MeanField(model, init_scale=0.3)
    with torch.no_grad():
        for name, p in guide.named_parameters():
            if "scale" in name:
                p.add_(0.5 * torch.randn_like(p))
    kl = ELBO(model, guide).terms(IMAGES, LABELS).kl

    def expected(q, scale):
        total = 0.0
        for m, s in zip(
            q.loc.double().flatten().tolist(), q.scale.double().flatten().tolist(), strict=True
        ):

            def integrand(n, m=m, s=s):
                z = math.exp(m + s * n)
                log_q = stats.norm.logpdf(n) - math.log(s) - m - s * n
                return stats.norm.pdf(n) * (log_q - stats.halfcauchy.logpdf(z, scale=scale))

            total += integrate.quad(integrand, -12, 12, epsabs=1e-10)[0]
        return total

    q = {name: d.base_dist for name, d in guide.requires_grad_(False).distributions().items()}
    for name in ("0.weight", "3.weight"):
        assert kl[f"{name}.scale"].item() == pytest.approx(
            expected(q[f"{name}.scale"], 1.0), rel=1e-4
        )
        assert kl[f"{name}.global_scale"].item() == pytest.approx(
            expected(q[f"{name}.global_scale"], tau), rel=1e-4
        )
    z = q["3.weight.scale"]
    measure = (z.scale.square() - z.loc).flatten()
    threshold = measure.sort().values[5:7].mean().item()
    pruned = prune(Posterior.from_guide(model, guide), group_threshold=threshold)
    assert torch.equal(pruned.groups["3.weight"].flatten(), measure < threshold)


def test_the_bound_of_the_group_horseshoe_holds():
    model = model_of(priors.Horseshoe(0.1, decomposed=True))
    guide = GroupHorseshoe(model, max_scale={"3.weight": 0.2})
    assert torch.allclose(
        guide.distributions()["3.weight.unit"].base_dist.scale, torch.tensor(math.exp(-4.5))
    )
    for name in ("0.weight", "3.weight"):
        guide.families()[f"{name}.unit"].log_scale.data.fill_(30.0)
    assert torch.allclose(guide.distributions()["3.weight.unit"].base_dist.scale, torch.tensor(0.2))
    assert guide.distributions()["0.weight.unit"].base_dist.scale.min() > 1e10
    assert list(guide.distributions()) == list(GroupHorseshoe(model).distributions())
    with pytest.raises(
        ValueError,
        match=r"GroupHorseshoe: max_scale names fc1; the weights .* are 0.weight, 3.weight",
    ):
        GroupHorseshoe(model, max_scale={"fc1": 0.2})
    with pytest.raises(ValueError, match="not below its cap"):
        GroupHorseshoe(model, init_log_variance=-2.0, max_scale={"3.weight": 0.2})
