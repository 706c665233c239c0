"""Adaptive probabilities come close to the entropy; integers of every size come back."""

import math
import random

import pytest

from pyro_bnn.compression.pbnn.context_mixing import Mixer, Numbers, squash_table, stretch_table
from pyro_bnn.compression.pbnn.range_coder import (
    CostRecorder,
    FormatError,
    RangeDecoder,
    RangeEncoder,
)
from tests.compression.pbnn.test_range_coder import drawn


@pytest.mark.parametrize("probability", [0.02, 0.1, 0.5, 0.97])
def test_a_probability_that_must_be_learned_costs_one_percent(probability):
    """Compared with the entropy of the sequence at its true probability; 8 bytes to spare."""
    sequence = drawn(1, 30_000, 65536 * probability)
    ones = sum(sequence)
    entropy = (
        -(ones * math.log2(probability) + (len(sequence) - ones) * math.log2(1 - probability)) / 8
    )
    encoder, mixer = RangeEncoder(), Mixer()
    for bit in sequence:
        mixer.code(encoder, bit, (0,))
    message = encoder.finish()
    assert len(message) <= 1.01 * entropy + 8
    decoder, mixer = RangeDecoder(message), Mixer()
    assert [mixer.code(decoder, 0, (0,)) for _ in sequence] == sequence


def test_mixing_finds_the_context_that_predicts():
    """Bits copy one of three contexts with probability 0.98; the others are noise."""
    generator = random.Random(2)
    recorder, mixer = CostRecorder(), Mixer(rate=100)
    for _ in range(5000):
        informative, noise, other = (generator.randrange(2) for _ in range(3))
        bit = informative ^ (generator.random() < 0.02)
        mixer.code(recorder, bit, (0, (1, noise), (2, informative), (3, other)))
    entropy = -(0.98 * math.log2(0.98) + 0.02 * math.log2(0.02)) * 5000
    # without contexts the bits would cost 5,000 bits
    assert recorder.cost() < 1.3 * entropy + 100


def test_integers_of_all_sizes_come_back_and_larger_ones_are_an_error():
    generator = random.Random(3)
    values = [0, 1, 2, 3, 2**64, 2**71]
    for _ in range(300):
        values.append(generator.getrandbits(generator.randrange(1, 70)))
    signed = [generator.choice((-1, 1)) * value for value in values[:-1] if value < 2**70]
    encoder, numbers = RangeEncoder(), Numbers()
    for value in values:
        numbers.code(encoder, value, "a")
    for value in signed:
        numbers.signed(encoder, value, "b")
    decoder, numbers = RangeDecoder(encoder.finish()), Numbers()
    assert [numbers.code(decoder, 0, "a") for _ in values] == values
    assert [numbers.signed(decoder, 0, "b") for _ in signed] == signed
    with pytest.raises(FormatError, match="72 bits"):
        Numbers().code(CostRecorder(), 2**72)


def test_a_repeated_number_costs_little_and_kinds_do_not_learn_from_each_other():
    recorder, numbers = CostRecorder(), Numbers()
    for _ in range(200):
        numbers.code(recorder, 41)
    assert (
        recorder.cost() < 200 * 3 + 40
    )  # three of the five digits behind the first are not learned
    first, second = CostRecorder(), CostRecorder()
    Numbers().code(first, 7, "kind")
    numbers.code(second, 7, "another")
    assert first.cost() == pytest.approx(second.cost())


def test_the_tables_are_the_logistic_function_and_its_inverse_on_every_machine():
    """Rounding down makes an error below one unit of 2^-16; the sums depend on every entry."""
    squash, stretch = squash_table(), stretch_table()
    for x, p in zip(range(-2048, 2048), squash, strict=True):
        exact = 65536 / (1 + math.exp(-x / 256))
        assert exact - 1 - 1e-6 <= p <= exact + 1e-6 or p in (16, 65520)
    for p, x in enumerate(stretch):
        exact = 256 * math.log((p + 0.5) / (4095.5 - p))
        assert abs(x - exact) <= 1.1 or p in (0, 4095)
    assert stretch == sorted(stretch)
    assert (sum(squash), sum(x * x for x in stretch)) == (134_182_934, 879_932_252)
