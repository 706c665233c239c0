"""Snapshots of the pruned weights."""

import pytest
import torch
from torch import nn

from pyro_bnn import BayesianNet, CheckpointError, Posterior, compression, likelihoods, priors
from pyro_bnn.guides import MeanField, PointEstimate
from pyro_bnn.models import MLP
from pyro_bnn.runs.snapshots import Snapshots, masked_means, read_snapshots
from pyro_bnn.training import Progress


@pytest.fixture
def posterior():
    """Return a posterior that prunes some weights of each layer."""
    torch.manual_seed(0)
    model = BayesianNet(
        MLP(16, (8, 6), 10), priors.LogUniform(), likelihoods.Categorical(), num_data=10
    )
    return Posterior.from_guide(model, MeanField(model, init_scale=0.3))


def progress(posterior, epoch):
    return Progress(epoch, {}, lambda: posterior)


def test_snapshots_hold_the_pruned_weights_of_every_few_epochs(posterior, tmp_path):
    callback = Snapshots(tmp_path / "snapshots", 4)
    for epoch in range(1, 13):
        callback(progress(posterior, epoch))
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == [
        f"epoch-{epoch:04d}.safetensors" for epoch in (4, 8, 12)
    ]
    snapshots = read_snapshots(tmp_path / "snapshots")
    assert [snapshot.epoch for snapshot in snapshots] == [4, 8, 12]
    full = compression.prune(posterior).masked.state_dict()
    weights = snapshots[0].weights
    assert set(weights) == set(posterior.model.names)
    for name, weight in weights.items():
        assert weight.dtype == torch.float16
        assert torch.equal(weight, full[name].half())


def test_snapshots_are_ordered_by_their_epoch(posterior, tmp_path):
    for epoch in (9, 10_000, 2000):
        Snapshots(tmp_path, 1)(progress(posterior, epoch))
    assert [snapshot.epoch for snapshot in read_snapshots(tmp_path)] == [9, 2000, 10_000]
    assert read_snapshots(tmp_path / "nowhere") == []


def test_the_snapshot_of_a_point_estimate_is_its_weights():
    model = BayesianNet(nn.Linear(3, 2), priors.Normal(1.0), likelihoods.Categorical(), num_data=10)
    posterior = Posterior.from_guide(model, PointEstimate(model))
    assert torch.equal(masked_means(posterior)["weight"], posterior.mean_network().weight)


def test_a_damaged_snapshot_is_an_error_that_names_its_file(tmp_path):
    (tmp_path / "epoch-0005.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="epoch-0005"):
        read_snapshots(tmp_path)


def test_snapshots_are_at_least_one_epoch_apart(tmp_path):
    with pytest.raises(ValueError, match="at least one epoch"):
        Snapshots(tmp_path, 0)
