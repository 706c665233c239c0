"""Random numbers with their own seed."""

import torch

from pyro_bnn.runtime.rng import fork_rng, generators, preserve_states

CPU = torch.device("cpu")


def test_a_fork_draws_by_its_seed_and_restores_the_state():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with fork_rng(CPU, seed=7):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with fork_rng(CPU, seed=7):
        assert torch.equal(torch.rand(3), first)


def test_a_fork_without_a_seed_continues_from_the_present_state():
    torch.manual_seed(1)
    with fork_rng(CPU):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), inside)


def test_the_cpu_has_one_generator_the_default_one():
    assert generators(CPU) == {"cpu": torch.default_generator}


def test_states_are_restored_after_an_error():
    generator = torch.Generator().manual_seed(4)
    before = generator.get_state()
    try:
        with preserve_states([generator]):
            torch.rand(2, generator=generator)
            raise KeyError("stop")
    except KeyError:
        pass
    assert torch.equal(generator.get_state(), before)
