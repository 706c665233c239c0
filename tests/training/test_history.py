"""The history of a fit: its units, its values in closed form, and the schedules it records.

Statistical checks allow 5 standard errors at fixed seeds (false-alarm rate below 1e-6 each).
"""

import math

import pytest
import torch

from pyro_bnn import ELBO, linear_warmup
from tests.training.programs import digest, linear_pair, quick_fit, toy_data


def test_history_is_in_nats_per_datum_and_counts_the_data_once():
    x, y = toy_data()
    model, guide = linear_pair()
    result = quick_fit(
        model,
        guide,
        (x, y),
        epochs=40,
        batch_size=10,
        learning_rate=0.0,
        kl_weight=0.5,
        reparameterize=False,
    )
    history = result.history
    assert set(history) == {"epoch", "loss", "data", "kl", "kl_weight", "learning_rate", "seconds"}
    assert {len(values) for values in history.values()} == {40}
    loss = ELBO()(model, guide)
    with torch.no_grad():
        terms = [loss.terms(x, y) for _ in range(400)]
    expected = torch.stack([t.data for t in terms]).double() / 30
    got = torch.tensor(history["data"]).double()
    error = math.sqrt(float(expected.var()) / 400 + float(got.var()) / 40)
    assert abs(float(expected.mean() - got.mean())) < 5 * error
    kl = float(sum(terms[0].kl.values()))
    assert history["kl"] == pytest.approx([kl / 30] * 40, rel=1e-5)
    assert history["loss"] == pytest.approx(
        [30 * (d + 0.5 * kl / 30) for d in history["data"]], rel=1e-5
    )


def test_the_data_term_of_a_linear_model_has_its_closed_form():
    """At q = N(m, s^2) the expected negative log-likelihood of a linear model is known."""
    x, y = toy_data()
    model, guide = linear_pair()
    result = quick_fit(model, guide, (x, y), epochs=200, batch_size=None, learning_rate=0.0)
    moments = {
        name: (mean.detach(), variance) for name, (mean, variance) in guide.moments().items()
    }
    design = torch.cat([x, torch.ones(30, 1)], 1)
    mean = torch.cat([moments["weight"][0].flatten(), moments["bias"][0]])
    variance = torch.cat([moments["weight"][1].flatten(), moments["bias"][1]])
    square = (y - design @ mean).square() + design.square() @ variance
    expected = float((0.5 * math.log(2 * math.pi * 0.09) + square / 0.18).mean())
    values = torch.tensor(result.history["data"])
    assert abs(float(values.mean()) - expected) < 5 * float(values.std()) / math.sqrt(200)


def test_schedules_are_functions_of_the_epoch_at_every_step():
    seen = {"rate": [], "beta": []}

    def rate(epoch):
        seen["rate"].append(epoch)
        return 0.01 / (1 + epoch)

    def beta(epoch):
        seen["beta"].append(epoch)
        return linear_warmup(0, 2)(epoch)

    model, guide = linear_pair()
    result = quick_fit(
        model, guide, toy_data(), epochs=3, batch_size=10, learning_rate=rate, kl_weight=beta
    )
    assert sorted(set(seen["rate"])) == pytest.approx([k / 3 for k in range(9)])
    assert sorted(set(seen["beta"])) == sorted(set(seen["rate"]))
    assert result.history["kl_weight"] == pytest.approx([1 / 3, 5 / 6, 1.0])
    assert result.history["learning_rate"] == pytest.approx(
        [0.01 / (1 + e) for e in (2 / 3, 5 / 3, 8 / 3)]
    )
    same = quick_fit(
        model, guide, toy_data(), epochs=3, batch_size=10, learning_rate=lambda epoch: 0.01
    )
    assert digest(same) == digest(quick_fit(model, guide, toy_data(), epochs=3, batch_size=10))
