"""Small files in the format of MNIST."""

import struct

import numpy as np

HALVES = ("train", "t10k")


def idx(array):
    """Return the bytes of an IDX file."""
    return (
        struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        + array.astype("u1").tobytes()
    )


def small_images(n=20, seed=0):
    """Return random images (n, 28, 28) and labels (n,)."""
    random_numbers = np.random.default_rng(seed)
    return random_numbers.integers(0, 256, (n, 28, 28)), np.arange(n) % 10


def write_half(raw, half, images, labels):
    raw.mkdir(parents=True, exist_ok=True)
    (raw / f"{half}-images-idx3-ubyte").write_bytes(idx(images))
    (raw / f"{half}-labels-idx1-ubyte").write_bytes(idx(labels))


def mnist_files(raw):
    return [
        raw / f"{half}-{stem}-ubyte" for half in HALVES for stem in ("images-idx3", "labels-idx1")
    ]
