"""Every kind of prior, with the endings of the names of its sites."""

import pyro.distributions as dist
import pytest

from pyro_bnn import priors

DECOMPOSED = [
    ".global_scale.gamma",
    ".global_scale.inverse_gamma",
    ".scale.gamma",
    ".scale.inverse_gamma",
    ".unit",
]
EVERY_PRIOR = {
    "normal": (lambda: priors.Normal(), [""]),
    "learned": (lambda: priors.LearnedNormal(), [""]),
    "log-uniform": (lambda: priors.LogUniform(), [""]),
    "student": (lambda: priors.Elementwise(dist.StudentT(3.0, 0.0, 1.0)), [""]),
    "mixture": (lambda: priors.GaussianMixture([1.0, 0.1]), [""]),
    "jeffreys": (lambda: priors.NormalJeffreys(), [".scale", ".unit"]),
    "horseshoe": (lambda: priors.Horseshoe(1e-3), [".global_scale", ".scale", ".unit"]),
    "horseshoe, no groups": (
        lambda: priors.Horseshoe(1e-3, group=None),
        [".global_scale", ".scale", ".unit"],
    ),
    "slab": (lambda: priors.Horseshoe(1e-3, slab=0.5), [".global_scale", ".scale", ".unit"]),
    "decomposed": (
        lambda: priors.Horseshoe(1e-3, decomposed=True),
        DECOMPOSED,
    ),
    "decomposed slab": (
        lambda: priors.Horseshoe(1e-3, slab=0.5, decomposed=True),
        DECOMPOSED,
    ),
}
every_prior = pytest.mark.parametrize("kind", EVERY_PRIOR)
