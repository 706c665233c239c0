"""What the warm-up learns, each part by itself."""

import math

import torch

from pyro_bnn.mcmc.adaptation import (
    DualAveraging,
    RunningMoments,
    TrajectoryLength,
    ends_of_windows,
    van_der_corput,
)


def test_running_moments_are_those_of_all_positions_shrunk_by_five():
    torch.manual_seed(0)
    positions = 3 + 2 * torch.randn(6, 4, 3, dtype=torch.float64)  # (step, chain, D)
    moments = RunningMoments.start(positions[0])
    for position in positions:
        moments = moments.update(position)
    pooled = positions.flatten(0, 1)
    assert torch.allclose(moments.mean, pooled.mean(0))
    expected = pooled.var(0) * 24 / 29 + 1e-3 * 5 / 29
    assert torch.allclose(moments.variance(), expected)


def test_dual_averaging_finds_the_step_size_of_the_target_acceptance():
    adaptation = DualAveraging.start(1.0)
    for _ in range(500):
        adaptation = adaptation.update(math.exp(-adaptation.current), target=0.8)
    # acceptance exp(-step) is 0.8 at -log 0.8
    assert math.isclose(adaptation.average, -math.log(0.8), rel_tol=0.1)


def test_trajectories_that_turn_back_become_shorter_and_those_that_go_on_longer():
    start, acceptance = torch.full((8, 2), 1.0), torch.ones(8)
    outward, inward = torch.full((8, 2), 1.0), torch.full((8, 2), -1.0)
    longer = shorter = TrajectoryLength.start(1.0)
    for _ in range(20):
        longer = longer.update(start, 2 * start, 9 * outward, acceptance, 1.0, 1e-3)
        shorter = shorter.update(start, 2 * start, inward, acceptance, 1.0, 1e-3)
    assert longer.current > 1.2
    assert shorter.current < 0.8


def test_a_trajectory_that_ends_in_nan_teaches_nothing():
    before = TrajectoryLength.start(1.0)
    lost = torch.full((2, 3), math.nan)
    assert before.update(torch.ones(2, 3), lost, lost, torch.zeros(2), 1.0, 1e-3) is before


def test_the_windows_grow_and_end_before_the_warm_up_does():
    assert sorted(ends_of_windows(100)) == [10, 20, 40, 80]
    assert ends_of_windows(19) == set()


def test_the_fractions_of_trajectory_lengths_fill_the_unit_interval_evenly():
    assert [van_der_corput(number) for number in (1, 2, 3, 4)] == [0.5, 0.25, 0.75, 0.125]
    assert sorted(van_der_corput(number) for number in range(1, 64)) == [
        k / 64 for k in range(1, 64)
    ]
