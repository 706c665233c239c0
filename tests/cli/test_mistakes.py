"""Mistakes on the command line are refused in one line and leave no files."""

import pytest

from tests.cli.commands import assert_refused_at_once, call, fit_small


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["fit", "lenet-300", "--out", "run"], "lenet-300-100"),
        (["fit", "mlp", "--prior", "log-unifrom", "--out", "run"], "log-uniform"),
        (["fit", "mlp", "--guide", "sparse-dv", "--out", "run"], "sparse-vd"),
        (["fit", "mlp", "--data", "boston", "--out", "run"], "bostonHousing"),
        (["evaluate", "nowhere", "--ood", "notmnst"], "notmnist"),
        (["evaluate", "nowhere", "--data", "digit"], "digits"),
        (["evaluate", "nowhere", "--model", "lenet-6"], "lenet-5"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_name_and_all_names(words, nearest, tmp_path):
    option = next((word for word in words if word in ("--prior", "--guide", "--data")), "")
    expected = f"did you mean {nearest}? Expected one of "
    assert_refused_at_once(call(*words), option, expected)
    assert list(tmp_path.iterdir()) == []


def test_the_case_of_names_does_not_matter():
    words = ("--data", "DIGITS", "--prior", "Laplace", "--prior-scale", -1, "--out", "run")
    assert_refused_at_once(call("fit", "MLP", *words), "laplace: expected --prior-scale above zero")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "expected --out DIR"),
        (["--out", "run"], "expected a MODEL"),
        (["--out", "run", "--resume"], "no run to resume"),
        (["lenet-5", "--out", "run"], "size >= 16"),
        (["mlp-regression", "--out", "run"], "take the model mlp, lenet-300-100 or lenet-5"),
        (
            ["lenet-300-100", "--hidden", "9", "--out", "run"],
            "the layers of lenet-300-100 are fixed",
        ),
        (["mlp", "--hidden", "9,x", "--out", "run"], "'9,x'"),
        (["mlp", "--hidden", "9,0", "--out", "run"], "'9,0'"),
        (["mlp", "--schedule", "cosine", "--out", "run"], "'cosine'"),
        (["mlp", "--kl-warmup", "7:7", "--out", "run"], "'7:7'"),
        (["mlp", "--kl-warmup", "7", "--out", "run"], "'7'"),
        (["mlp", "--learning-rate", "-1", "--out", "run"], "learning rate above zero"),
        (["mlp", "--epochs", "0", "--out", "run"], "--epochs"),
        (["mlp", "--epoch", "5", "--out", "run"], "--epoch"),
        (
            ["mlp", "--prior", "laplace", "--prior-scale", "-1", "--out", "run"],
            "--prior-scale above zero",
        ),
        (
            ["mlp", "--prior-scale", "0.1", "--out", "run"],
            "--prior-scale: the prior log-uniform does not use it",
        ),
        (["mlp", "--dropout", "0.1", "--out", "run"], "only bernoulli-dropout, gaussian-dropout"),
        (
            ["mlp", "--prior", "normal", "--guide", "gaussian", "--no-tricks", "--out", "run"],
            "--no-tricks",
        ),
        (["mlp", "--seed", str(2**70), "--out", "run"], "--seed"),
        (["mlp", "--prior", "normal", "--guide", "group", "--out", "run"], "NormalJeffreys"),
        (
            ["mlp", "--prior", "log-uniform", "--guide", "group-horseshoe", "--out", "run"],
            "decomposed",
        ),
        (["mlp", "--batch-size", "5000", "--out", "run"], "batch_size=5000"),
        (["mlp", "--hold-out", "1437", "--out", "run"], "fewer than the 1437 training examples"),
        (["mlp", "--device", "cuda:77", "--out", "run"], "cuda:77"),
        (["mlp", "--data", "mnist", "--data-dir", "nowhere", "--out", "run"], "nowhere"),
        (
            ["mlp-regression", "--data", "concrete", "--data-dir", "nowhere", "--out", "run"],
            "concrete.npz",
        ),
    ],
)
def test_a_mistake_is_refused_in_one_line_and_leaves_no_files(words, expected, tmp_path):
    assert_refused_at_once(call("fit", *words), expected)
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_is_a_failure_of_the_run():
    result = fit_small("run", "--learning-rate", "1e30", epochs=3)
    assert_refused_at_once(result, "finite", code=1)
