"""The random numbers of many chains."""

import torch

from pyro_bnn.mcmc.noise import Noise

LIKE = torch.zeros((), dtype=torch.float64)


def noise(seed=3, chains=2, size=5, batch_size=4):
    return Noise(seed, chains, size, LIKE, batch_size, num_data=10)


def test_the_numbers_of_a_step_have_the_shapes_of_their_documentation():
    numbers = noise().next()
    assert numbers.normal.shape == (2, 5)
    assert numbers.normal.dtype == torch.float64
    assert numbers.uniform.shape == (2,)
    assert numbers.examples.shape == (2, 4)
    assert set(numbers.examples.flatten().tolist()) <= set(range(10))


def test_a_chain_sees_the_same_numbers_whatever_the_number_of_chains():
    few, many = noise(chains=2), noise(chains=7)
    for _ in range(3):
        one, other = few.next(), many.next()
        assert torch.equal(one.normal, other.normal[:2])
        assert torch.equal(one.uniform, other.uniform[:2])
        assert torch.equal(one.examples, other.examples[:2])


def test_chains_and_seeds_see_different_numbers():
    numbers = noise().next().normal
    assert not torch.equal(numbers[0], numbers[1])
    assert not torch.equal(numbers, noise(seed=4).next().normal)
    # neighbouring seeds share no stream of neighbouring chains
    assert not torch.equal(numbers[1], noise(seed=4).next().normal[0])


def test_a_negative_seed_is_a_seed():
    assert not torch.equal(noise(seed=-1).next().normal, noise(seed=1).next().normal)


def test_a_restored_stream_continues_bit_for_bit():
    original = noise(size=3000)  # several steps are drawn at a time, so the stream stops between
    for _ in range(7):
        original.next()
    restored = noise(seed=99, size=3000)
    restored.restore(original.state())
    for _ in range(8):
        assert torch.equal(restored.next().normal, original.next().normal)


def test_many_weights_are_drawn_one_step_at_a_time():
    large = noise(size=20_000)
    assert large.steps_ahead == 1
    assert not torch.equal(large.next().normal, large.next().normal)
