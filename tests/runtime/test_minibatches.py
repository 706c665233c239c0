"""Streams of minibatches."""

import math

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pyro_bnn.runtime.minibatches import batches_of, fingerprint

CPU = torch.device("cpu")


@pytest.mark.parametrize(("n", "size"), [(10, 3), (10, 10), (7, 5), (12, 4), (5, 1)])
def test_every_epoch_goes_through_a_permutation_in_batches_of_one_shape(n, size):
    batches = batches_of((torch.arange(n), torch.arange(n)), size, 0, n)
    steps = math.ceil(6 * batches.per_epoch)
    stream = batches.stream(0, CPU)
    taken = [next(stream) for _ in range(steps)]
    assert {x.shape for x, _ in taken} == {(size,)}
    assert all(torch.equal(x, y) for x, y in taken)
    order = torch.cat([x for x, _ in taken])
    epochs = [order[start : start + n] for start in range(0, 6 * n, n)]
    assert all(torch.equal(epoch.sort().values, torch.arange(n)) for epoch in epochs)
    if n != size:
        assert len({tuple(epoch.tolist()) for epoch in epochs}) > 3
    late = batches_of((torch.arange(n), torch.arange(n)), size, 0, n).stream(4, CPU)
    assert torch.equal(next(late)[0], taken[4][0])


def test_a_loader_and_sampler_with_one_generator_are_seeded_once_and_restored():
    generator = torch.Generator().manual_seed(8)
    dataset = TensorDataset(torch.arange(10))
    loader = DataLoader(dataset, batch_size=5, shuffle=True, generator=generator)
    before = generator.get_state()
    batches = batches_of(loader, None, 0, None)
    with batches.preserve_rng_state():
        first = next(batches.stream(0, CPU))[0]
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(next(batches_of(loader, None, 0, None).stream(0, CPU))[0], first)


def test_messages_begin_with_the_name_of_the_caller():
    x = torch.zeros(4, 1)
    with pytest.raises(ValueError, match=r"^hmc: batch_size=5 is larger than the data set of 4"):
        batches_of((x, x), 5, 0, None, caller="hmc")
    with pytest.raises(ValueError, match=r"^hmc: expected tensors .* got \(ndarray, int\)"):
        batches_of((x.numpy(), 3), None, 0, None, caller="hmc")
    with pytest.raises(ValueError, match=r"^hmc: the data have 4 examples .* num_data is 5"):
        batches_of((x, x), None, 0, 5, caller="hmc")


def test_the_fingerprint_depends_on_numbers_shape_and_dtype():
    x = torch.zeros(4, 2)
    others = [x + 1, x.view(2, 4), x.double(), x.int()]
    prints = {fingerprint([tensor]) for tensor in (x, *others)}
    assert len(prints) == 5
    assert fingerprint([x.clone()]) in prints
