"""Indices of stored draws count all chains, laid end to end."""

import torch

from pyro_bnn.posterior.stored_draws import StoredDraws

DRAWS = StoredDraws({"w": torch.arange(12.0).view(3, 4)})


def test_the_draws_of_all_chains_are_counted():
    assert (DRAWS.chains, DRAWS.per_chain, len(DRAWS)) == (3, 4, 12)


def test_the_last_draws_are_those_of_each_chain():
    assert DRAWS.take(DRAWS.last(2))["w"].tolist() == [2, 3, 6, 7, 10, 11]


def test_evenly_spaced_draws_span_all_chains():
    assert DRAWS.evenly_spaced(4).tolist() == [0, 3, 6, 9]


def test_no_draw_is_chosen_twice_before_all_are_chosen_once():
    torch.manual_seed(0)
    chosen = DRAWS.choose(30)
    assert sorted(chosen[:12].tolist()) == list(range(12))
    assert chosen.bincount().min() == 2
