"""The rows of the tables: what is fitted, and what is measured."""

import pytest
import torch

from pyro_bnn import BayesianNet, Posterior, likelihoods, priors
from pyro_bnn.compression import restrict
from pyro_bnn.datasets import Dataset, digits, hold_out
from pyro_bnn.guides import BernoulliDropout, SparseVariationalDropout
from pyro_bnn.models import MLP, VGG
from pyro_bnn.reproduction import experiment as experiment_module
from pyro_bnn.reproduction import recipes, rows, tables
from pyro_bnn.reproduction.experiment import Experiment
from pyro_bnn.reproduction.groups import NORMAL_JEFFREYS, prune_to_size
from pyro_bnn.training import linear_warmup
from tests.reproduction.digits import experiment, grouped


@pytest.fixture
def colors():
    """Return 300 noisy images of 3 x 32 x 32 in ten classes, 50 of them held out."""
    noise = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 3, 32, 32, generator=noise), torch.arange(300) % 10
    x[:, 0] += y[:, None, None] / 3
    scale = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    data = Dataset("colors", x[:200], y[:200], x[200:], y[200:], *scale, classes=10)
    return hold_out(data, 50)


@pytest.mark.filterwarnings("ignore:site")
def test_the_recipe_of_vgg_runs_at_a_sixteenth_of_the_width(tmp_path, monkeypatch, colors):
    fit = experiment_module.fit
    monkeypatch.setattr(
        experiment_module,
        "fit",
        lambda *args, **options: fit(*args, **options | {"compile": False}),
    )
    setup, results = Experiment(tmp_path, *colors, progress=False), tmp_path / "rows"
    measured = list(tables.reproduce("bayesian-compression", "vgg-sixteenth", setup, results))
    assert [row.method for row in measured] == ["group normal-Jeffreys", "group horseshoe"]
    for row in measured:
        assert row.weights == sum(w.numel() for w in VGG(1 / 16).parameters() if w.dim() > 1)
        # a dead filter stays where its constant, behind a batch normalization, meets the zeros of
        # a padding
        assert len(row.architecture.split("-")) == 15
        assert 0 < row.nonzero <= row.dense < row.weights
        assert row.nonzero < 0.75 * row.weights
        assert row.note.startswith("colors, 6 epochs, ")
    table = tables.format_rows("bayesian-compression", "vgg-sixteenth", results)
    assert "| vgg-sixteenth |" in table


def test_random_labels_are_fitted_by_dropout_and_forgotten_by_sparse_vd(tmp_path, monkeypatch):
    """The rows say what was fitted to which labels; the fits themselves are short here."""
    fitted = []

    def fit_briefly(setup, name, sparse):
        torch.manual_seed(0)
        fitted.append((setup.data, setup.num_data))
        net, likelihood = MLP(64, (30,), 10), likelihoods.Categorical()
        if sparse:
            model = BayesianNet(net, priors.LogUniform(), likelihood, setup.num_data)
            guide = SparseVariationalDropout(model)
        else:
            model = BayesianNet(net, priors.Normal(1e3), likelihood, setup.num_data)
            guide = BernoulliDropout(model, recipes.RANDOM_LABELS_DROPOUT_RATE)
        return setup.fit(
            name,
            model,
            guide,
            epochs=12,
            learning_rate=3e-3,
            kl_weight=linear_warmup(0, 4),
            compile=False,
        )

    monkeypatch.setattr(recipes, "fit_random_labels", fit_briefly)
    dropout, forgotten, learned = rows._random_labels(experiment(tmp_path))
    whole = digits()
    random, again, true = (data.y_train for data, _ in fitted)
    assert [num_data for _, num_data in fitted] == [1437] * 3
    assert torch.equal(random, again)
    assert torch.equal(true, whole.y_train)
    assert (random == true).float().mean() < 0.2
    assert [row.method for row in (dropout, forgotten, learned)] == [
        *("binary dropout, random labels", "Sparse VD, random labels", "Sparse VD, true labels")
    ]
    assert dropout.nonzero == dropout.weights == 64 * 30 + 300
    assert dropout.note.startswith("1,437 images, training accuracy ")
    assert dropout.note.endswith(", rate 0.05")
    assert 0 <= forgotten.nonzero < learned.nonzero < learned.weights
    assert learned.test_error < 20 < forgotten.test_error
    assert " nats an image" in forgotten.note


def test_a_row_counts_the_weights_of_the_original_network(tmp_path):
    torch.manual_seed(0)
    setup, net = experiment(tmp_path), MLP(64, (8, 7), 10)
    posterior = grouped(net)
    smaller = Posterior.from_guide(*restrict(posterior, prune_to_size(posterior, 300)))
    pruned = prune_to_size(smaller, 200, NORMAL_JEFFREYS.groups_by)
    row = rows._row(setup, net, "m", pruned)
    assert row.weights == 64 * 8 + 8 * 7 + 7 * 10
    assert row.dense <= 200
