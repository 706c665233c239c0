"""The range coder: what is written is read, at the length of its entropy, and nothing else is accepted."""

import math
import random

import pytest

from pyro_bnn.compression.pbnn.context_mixing import Mixer, Numbers, squash_table, stretch_table
from pyro_bnn.compression.pbnn.range_coder import (
    CostRecorder,
    FormatError,
    RangeDecoder,
    RangeEncoder,
    most_decisions,
)


def drawn(seed, count, probability):
    generator = random.Random(seed)
    return [int(generator.random() < probability / 65536) for _ in range(count)]


@pytest.mark.parametrize("probability", [16, 655, 6554, 32768, 60000, 65520])
def test_the_length_is_the_entropy(probability):
    """Against -log2 of the probability of the drawn sequence itself, so nothing is left to chance."""
    sequence = drawn(0, 20_000, probability)
    p, ones = probability / 65536, sum(sequence)
    entropy = -(ones * math.log2(p) + (len(sequence) - ones) * math.log2(1 - p)) / 8
    encoder, price = RangeEncoder(), CostRecorder()
    for bit in sequence:
        encoder.bit(bit, probability)
        price.bit(bit, probability)
    message = encoder.finish()
    assert price.cost() / 8 == pytest.approx(entropy)
    assert entropy - 1 <= len(message) <= 1.001 * entropy + 2
    assert len(price.record) <= most_decisions(len(message)) or probability in (16, 65520)
    decoder = (
        RangeDecoder(message + bytes(100)) if probability in (16, 65520) else RangeDecoder(message)
    )
    assert [decoder.bit(0, probability) for _ in sequence] == sequence


@pytest.mark.parametrize("probability", [0.02, 0.1, 0.5, 0.97])
def test_the_adaptive_length_is_the_entropy(probability):
    """Within 1 % and 8 bytes of the entropy of the sequence at its true probability, which the coder has to learn."""
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


def test_mixing_finds_the_context_that_knows():
    """Bits copy one of three contexts with probability 0.98; the others are noise."""
    generator = random.Random(2)
    price, mixer = CostRecorder(), Mixer(rate=100)
    for _ in range(5000):
        known, noise, other = (generator.randrange(2) for _ in range(3))
        bit = known ^ (generator.random() < 0.02)
        mixer.code(price, bit, (0, (1, noise), (2, known), (3, other)))
    entropy = -(0.98 * math.log2(0.98) + 0.02 * math.log2(0.02)) * 5000
    assert (
        price.cost() < 1.3 * entropy + 100
    )  # a single coder without contexts would need 5,000 bits


def written(seed):
    generator = random.Random(seed)
    return [
        (generator.randrange(2), generator.choice((1, 300, 32768, 65535)))
        if generator.random() < 0.8
        else (generator.getrandbits(37), -37)
        for _ in range(generator.randrange(60))
    ]


def play(coder, record):
    return [coder.bit(v, p) if p > 0 else coder.bits(v, -p) for v, p in record]


@pytest.mark.parametrize("padded", [False, True])
def test_any_sequence_comes_back_and_the_end_is_known(padded):
    """Extreme probabilities make carries; a message is the shortest one, so any byte behind it is refused or read."""
    for seed in range(400):
        record = written(seed)
        encoder, price = RangeEncoder(), CostRecorder()
        play(encoder, record)
        play(price, record)
        message = encoder.finish(padded)
        assert len(message) <= price.cost() / 8 + 6
        replayed = RangeEncoder()
        price.replay(replayed)
        assert replayed.finish(padded) == message
        behind = random.Random(seed).randbytes(5) if padded else b""
        decoder = RangeDecoder(message + behind)
        assert play(decoder, [(0, p) for _, p in record]) == [v for v, _ in record]
        assert decoder.finish(padded) == len(message)
        if padded:
            continue
        for more in (b"\0", b"\x01", b"\x80", b"\xff\xff\xff\xff\xff\xff"):
            decoder = RangeDecoder(message + more)
            try:
                found = play(decoder, [(0, p) for _, p in record])
                decoder.finish()
            except FormatError:
                continue
            assert found != [v for v, _ in record]


def test_shorter_messages_say_something_else():
    """No message is longer than it need be: without its last byte it gives other decisions."""
    for seed in range(200):
        record = written(seed)
        encoder = RangeEncoder()
        play(encoder, record)
        message = encoder.finish()
        if message:
            try:
                found = play(RangeDecoder(message[:-1]), [(0, p) for _, p in record])
            except FormatError:
                continue
            assert found != [v for v, _ in record]


def test_endless_messages_are_refused():
    decoder = RangeDecoder(b"")
    with pytest.raises(FormatError, match="far more decisions"):
        play(decoder, [(0, 65535)] * 10**6)


def test_numbers_of_all_sizes():
    generator = random.Random(3)
    values = [0, 1, 2, 3, 2**64, 2**71] + [
        generator.getrandbits(generator.randrange(1, 70)) for _ in range(300)
    ]
    signs = [generator.choice((-1, 1)) * value for value in values[:-1] if value < 2**70]
    encoder, numbers = RangeEncoder(), Numbers()
    for value in values:
        numbers.code(encoder, value, "a")
    for value in signs:
        numbers.signed(encoder, value, "b")
    decoder, numbers = RangeDecoder(encoder.finish()), Numbers()
    assert [numbers.code(decoder, 0, "a") for _ in values] == values
    assert [numbers.signed(decoder, 0, "b") for _ in signs] == signs
    with pytest.raises(FormatError, match="72 bits"):
        Numbers().code(CostRecorder(), 2**72)


def test_repeated_numbers_cost_little():
    price, numbers = CostRecorder(), Numbers()
    for _ in range(200):
        numbers.code(price, 41)
    assert price.cost() < 200 * 3 + 40  # three of the five digits behind the first are not learned
    first, second = CostRecorder(), CostRecorder()
    Numbers().code(first, 7, "kind")
    numbers.code(second, 7, "another")
    assert first.cost() == pytest.approx(second.cost())  # kinds do not learn from each other


def test_tables_are_the_functions_and_the_same_everywhere():
    """Rounding down makes an error below one unit of 2^-16; the sums pin every entry on every machine."""
    squash, stretch = squash_table(), stretch_table()
    for x, p in zip(range(-2048, 2048), squash, strict=True):
        exact = 65536 / (1 + math.exp(-x / 256))
        assert exact - 1 - 1e-6 <= p <= exact + 1e-6 or p in (16, 65520)
    for p, x in enumerate(stretch):
        exact = 256 * math.log((p + 0.5) / (4095.5 - p))
        assert abs(x - exact) <= 1.1 or p in (0, 4095)
    assert stretch == sorted(stretch)
    assert (sum(squash), sum(x * x for x in stretch)) == (134_182_934, 879_932_252)
