"""Damaged and hostile files end in one error, before they cost time or memory."""

import random
import time
import zlib

import pytest
from torch import nn

from pyro_bnn.compression.pbnn.codec import FormatError, decode, encode
from pyro_bnn.compression.pbnn.forms import State
from pyro_bnn.compression.pbnn.graph_codes import LAYERS, OPERATIONS, Operation, code_operation
from pyro_bnn.compression.pbnn.range_coder import RangeEncoder
from tests.compression.pbnn.networks import Shared, seeded, small


def checked(body):
    """Return a file with the correct checksum."""
    return body + zlib.crc32(body).to_bytes(4, "little")


def test_every_flipped_bit_and_every_other_length_is_an_error():
    data = encode(small())
    decode(data)
    bad = [data[:k] for k in range(len(data))]
    bad += [data + b"\0", data + data, b"\0" + data]
    for k in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[k // 8] ^= 1 << k % 8
        bad.append(bytes(flipped))
    for file in bad:
        with pytest.raises(FormatError, match=r"^decode: expected"):
            decode(file)
    with pytest.raises(FormatError, match="expected version 1 of the format, found 2"):
        decode(checked(data[:2] + b"\2" + data[3:-4]))


def test_bytes_after_the_end_are_an_error_even_with_the_correct_checksum():
    for net in (small(), seeded(lambda: nn.Linear(30, 20))):
        data = encode(net)
        for more in (b"\0", b"\x01", b"\x80", b"\xff\xff", bytes(9)):
            with pytest.raises(FormatError, match="found"):
                decode(checked(data[:-4] + more))


def hostile(inputs, outputs, after=()):
    """Return a file that begins with one enormous layer."""
    coder, state = RangeEncoder(), State()
    code_operation(coder, state, 0, -1)
    for value, context in [(0, "back"), (0, "type"), (inputs, "width"), (outputs, "width"), *after]:
        state.numbers.code(coder, value, context)
    return checked(b"PB\1" + coder.finish())


@pytest.mark.parametrize(
    ("inputs", "outputs"), [(2**24, 2**24), (2**40, 2**30), (2**71, 1), (5000, 4000)]
)
def test_a_file_that_claims_terabytes_is_refused_before_memory_is_allocated(inputs, outputs):
    start = time.process_time()
    with pytest.raises(FormatError, match=r"numbers and more|expected a size up to"):
        decode(hostile(inputs, outputs))
    assert time.process_time() - start < 1


def test_a_file_that_claims_an_endless_tensor_is_refused_in_time():
    for positions, values in [(1, 0), (1, 2), (2, 0), (0, 0), (0, 1), (0, 2)]:
        for inputs, outputs in [(700, 700), (1, 400_000), (400_000, 1), (4000, 4000)]:
            after = [(positions, ("positions", "weight")), (values, ("values", "weight"))]
            start = time.process_time()
            with pytest.raises(FormatError, match="expected"):
                decode(hostile(inputs, outputs, after))
            assert time.process_time() - start < 3


def mutated(generator, data):
    """Return a file with random damage; nine of ten have the correct checksum.

    The damage: flipped bits, a cut, an extension, a splice, overwritten bytes, random bytes.
    """
    body = bytearray(data[:-4])
    kind = generator.randrange(6)
    if kind == 0:
        for _ in range(generator.randrange(1, 4)):
            body[generator.randrange(len(body))] ^= 1 << generator.randrange(8)
    elif kind == 1:
        del body[generator.randrange(len(body)) :]
    elif kind == 2:
        body += generator.randbytes(generator.randrange(1, 9))
    elif kind == 3:
        a, b, c = sorted(generator.randrange(len(body)) for _ in range(3))
        body = body[:a] + body[b:c] + body[a:]
    elif kind == 4:
        for _ in range(generator.randrange(1, 6)):
            body[generator.randrange(len(body))] = generator.randrange(256)
    else:
        body[3:] = bytes(
            generator.choice((0, 255, generator.randrange(256)))
            for _ in range(generator.randrange(60))
        )
    if generator.random() < 0.9:
        body[:3] = data[:3]
        return checked(bytes(body))
    return bytes(body) + data[-4:]


@pytest.mark.parametrize(
    ("first", "count"), [(0, 400), pytest.param(400, 9600, marks=pytest.mark.slow)]
)
def test_damaged_files_end_in_one_error_or_in_a_network_of_the_format(first, count):
    """With the correct checksum damage may give a network, but only of the format's operations."""
    allowed = {operation.function for operation in OPERATIONS if isinstance(operation, Operation)}
    nets = [small(), seeded(Shared), seeded(lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU()))]
    files = [encode(net) for net in nets]
    networks, slowest = 0, 0.0
    for seed in range(first, first + count):
        generator = random.Random(seed)
        file = mutated(generator, generator.choice(files))
        start = time.process_time()
        try:
            decoded = decode(file)
        except FormatError:
            decoded = None
        slowest = max(slowest, time.process_time() - start)
        if decoded is None:
            continue
        networks += 1
        for node in decoded.graph.nodes:
            if node.op == "call_function":
                assert node.target in allowed
            if node.op == "call_module":
                assert type(decoded.get_submodule(node.target)) in LAYERS
    assert count / 100 < networks < count / 2
    assert slowest < 2


def test_a_codebook_whose_numbers_are_too_wide_for_another_layer_is_an_error():
    """A float16 layer that uses the codebook of a float32 layer before it."""
    coder, state = RangeEncoder(), State()

    def code_head(number_type, widths, previous):
        code_operation(coder, state, 0, previous)
        for value, context in [(0, "back"), *((0, "again"),) * (previous >= 0)]:
            state.numbers.code(coder, value, context)
        state.numbers.code(coder, number_type, "type")
        for value, context in [*widths, (1, "no bias"), (0, ("positions", "weight"))]:
            state.numbers.code(coder, value, context)
        state.numbers.code(coder, 0, ("values", "weight"))

    code_head(0, [(1, "width"), (1, "width")], -1)
    for value, context in [(0, "levels"), (0, "fixed"), (0, ("scale", False))]:
        state.numbers.code(coder, value, context)
    state.numbers.signed(coder, 1 << 20, "lowest")
    code_head(2, [(0, "other width"), (1, "width")], 0)
    state.numbers.code(coder, 1, "codebook")
    code_operation(coder, state, 2, 0)
    state.numbers.code(coder, 0, "back")
    with pytest.raises(FormatError, match="a codebook with wider ones"):
        decode(checked(b"PB\1" + coder.finish()))
