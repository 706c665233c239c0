"""Bits written by the range coder are read again, at the length of their entropy."""

import math
import random

import pytest

from pyro_bnn.compression.pbnn.range_coder import (
    CostRecorder,
    FormatError,
    RangeDecoder,
    RangeEncoder,
    max_decisions,
)


def drawn(seed, count, probability):
    generator = random.Random(seed)
    return [int(generator.random() < probability / 65536) for _ in range(count)]


@pytest.mark.parametrize("probability", [16, 655, 6554, 32768, 60000, 65520])
def test_the_length_of_a_message_is_its_entropy(probability):
    """Compared with -log2 of the probability of the very sequence, so chance plays no part."""
    sequence = drawn(0, 20_000, probability)
    p, ones = probability / 65536, sum(sequence)
    entropy = -(ones * math.log2(p) + (len(sequence) - ones) * math.log2(1 - p)) / 8
    encoder, recorder = RangeEncoder(), CostRecorder()
    for bit in sequence:
        encoder.bit(bit, probability)
        recorder.bit(bit, probability)
    message = encoder.finish()
    assert recorder.cost() / 8 == pytest.approx(entropy)
    assert entropy - 1 <= len(message) <= 1.001 * entropy + 2
    assert len(recorder.record) <= max_decisions(len(message)) or probability in (16, 65520)
    if probability in (16, 65520):  # more decisions than a reader accepts in so few bytes
        message += bytes(100)
    decoder = RangeDecoder(message)
    assert [decoder.bit(0, probability) for _ in sequence] == sequence


def written(seed):
    """Return random calls: (bit, probability), or (value, -37) for 37 bits at even odds."""
    generator = random.Random(seed)
    record = []
    for _ in range(generator.randrange(60)):
        if generator.random() < 0.8:
            record.append((generator.randrange(2), generator.choice((1, 300, 32768, 65535))))
        else:
            record.append((generator.getrandbits(37), -37))
    return record


def play(coder, record):
    values = []
    for value, probability in record:
        if probability > 0:
            values.append(coder.bit(value, probability))
        else:
            values.append(coder.bits(value, -probability))
    return values


@pytest.mark.parametrize("padded", [False, True])
def test_any_sequence_comes_back_and_the_end_is_known(padded):
    """Extreme probabilities make carries. A byte behind a message is an error, or other bits."""
    for seed in range(400):
        record = written(seed)
        encoder, recorder = RangeEncoder(), CostRecorder()
        play(encoder, record)
        play(recorder, record)
        message = encoder.finish(padded)
        assert len(message) <= recorder.cost() / 8 + 6
        replayed = RangeEncoder()
        recorder.replay(replayed)
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
                values = play(decoder, [(0, p) for _, p in record])
                decoder.finish()
            except FormatError:
                continue
            assert values != [v for v, _ in record]


def test_a_message_without_its_last_byte_decodes_to_other_bits():
    """So no message is longer than necessary."""
    for seed in range(200):
        record = written(seed)
        encoder = RangeEncoder()
        play(encoder, record)
        message = encoder.finish()
        if message:
            try:
                values = play(RangeDecoder(message[:-1]), [(0, p) for _, p in record])
            except FormatError:
                continue
            assert values != [v for v, _ in record]


def test_more_decisions_than_a_message_may_hold_are_an_error():
    decoder = RangeDecoder(b"")
    with pytest.raises(FormatError, match="at most 16,384 binary decisions in 0 bytes, found more"):
        play(decoder, [(0, 65535)] * 10**6)
