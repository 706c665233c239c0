"""Learning rates and KL weights of runs."""

import pytest

from pyro_bnn.runs.settings import Settings, schedules


def test_the_defaults_are_the_published_recipe_of_sparse_variational_dropout():
    rates = schedules(Settings("lenet-300-100"))
    rate = [rates.learning_rate(epoch) for epoch in (0, 99.9, 100, 150.5, 199.99)]
    assert rate == pytest.approx([1e-3, 1e-3, 1e-3, 0.5e-3, 1e-5])
    weight = [rates.kl_weight(epoch) for epoch in (4.99, 5.99, 6, 12.5, 20)]
    assert weight == pytest.approx([0, 0, 1 / 15, 7 / 15, 1])


@pytest.mark.parametrize(
    ("schedule", "end"), [("constant", 1.0), ("linear", 0.1), ("half-linear", 0.2)]
)
def test_each_schedule_ends_at_its_rate_of_the_last_epoch(schedule, end):
    settings = Settings("mlp", epochs=10, learning_rate=1.0, schedule=schedule, kl_warmup="none")
    rates = schedules(settings)
    values = rates.learning_rate(0.0), rates.learning_rate(9.5), rates.kl_weight(0.0)
    assert values == pytest.approx((1.0, end, 1.0))


def test_a_time_just_below_an_epoch_belongs_to_the_epoch():
    rates = schedules(Settings("mlp", epochs=10, learning_rate=1.0, schedule="linear"))
    assert rates.learning_rate(3 - 1e-12) == rates.learning_rate(3.0)
