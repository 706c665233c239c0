"""The workbench, the pieces of its recipes, and the tables made of their rows."""

import dataclasses
import json

import pytest
import torch

from pyro_bnn import BayesianNet, Posterior, compression, fit, likelihoods, priors
from pyro_bnn.compression import restrict
from pyro_bnn.datasets import Dataset, digits, hold_out
from pyro_bnn.guides import (
    BernoulliDropout,
    GroupNormalJeffreys,
    MeanField,
    SparseVariationalDropout,
)
from pyro_bnn.models import MLP, VGG, LeNet5
from pyro_bnn.reproduction import experiment as reproduction
from pyro_bnn.reproduction import recipes, tables
from pyro_bnn.reproduction.experiment import Experiment, delayed, linear_decay, shifted
from pyro_bnn.reproduction.tables import Row
from pyro_bnn.runtime.validation import DataError
from pyro_bnn.training import linear_warmup

METHOD = recipes.normal_jeffreys


def experiment(folder):
    data, held_out = hold_out(digits(), 137)
    return Experiment(folder, data, held_out, progress=False)


def grouped(net):
    """A group posterior whose measures are known: log alpha of group i of every layer is -i."""
    model = BayesianNet(
        net, {"*.weight": priors.NormalJeffreys()}, likelihoods.Categorical(), num_data=10
    )
    guide = GroupNormalJeffreys(model)
    with torch.no_grad():
        for name, family in guide.families().items():
            if name.endswith(".scale"):
                order = torch.arange(family.loc.numel(), dtype=torch.float32).view_as(family.loc)
                family.loc.fill_(1.0)
                family.log_scale.copy_(-order / 2)
    return Posterior.from_guide(model, guide)


def test_the_held_out_images_are_the_last_and_no_others():
    whole = digits()
    data, (x, y) = hold_out(whole, 137)
    assert len(data.x_train) == 1300
    assert torch.equal(x, whole.x_train[1300:])
    assert torch.equal(torch.cat([data.y_train, y]), whole.y_train)
    everything = experiment(None).everything
    assert torch.equal(everything.x_train, whole.x_train)


def test_a_class_is_not_held_out_altogether():
    whole = digits()
    order = whole.y_train.argsort()
    ordered = dataclasses.replace(whole, x_train=whole.x_train[order], y_train=whole.y_train[order])
    with pytest.raises(ValueError, match="the last 200 training examples are all there are of class 9"):
        hold_out(ordered, 200)


def test_a_schedule_goes_on_where_it_was():
    rate = linear_decay(0.1, 10, 20)
    assert [delayed(rate, 10)(epoch) for epoch in (0, 5, 10)] == [rate(10), rate(15), 0.0]


def test_images_move_by_whole_pixels():
    mean = torch.rand(9)
    image = torch.arange(9.0)[None]
    right = shifted(image - mean, mean, 1, 0) + mean
    torch.testing.assert_close(right.view(3, 3), torch.tensor([[2.0, 0, 1], [5, 3, 4], [8, 6, 7]]))
    down = shifted(image - mean, mean, 0, 1) + mean
    torch.testing.assert_close(down.view(3, 3), torch.tensor([[6.0, 7, 8], [0, 1, 2], [3, 4, 5]]))


def test_a_lesson_is_what_the_teacher_says_of_the_same_images(tmp_path):
    torch.manual_seed(0)
    own, net = experiment(tmp_path), MLP(64, (5,), 10)
    lesson = own.distillation_data(net)
    assert len(lesson.x) == len(lesson.y) == len(lesson.soft_labels) == 5 * 1300
    assert torch.equal(lesson.y[1300:2600], own.data.y_train)
    with torch.no_grad():
        torch.testing.assert_close(lesson.soft_labels, torch.softmax(net(lesson.x) / 2, -1))
    assert torch.equal(own.distillation_data(net, shifted=False).x, own.data.x_train)


def test_a_fit_that_was_run_is_not_run_again(tmp_path):
    torch.manual_seed(0)
    model = BayesianNet(
        MLP(64, (5,), 10), priors.Normal(1.0), likelihoods.Categorical(), num_data=1300
    )
    first, second = experiment(tmp_path), experiment(tmp_path)
    posterior = first.fit("a", model, MeanField(model), epochs=1, compile=False)
    again = second.fit("a", model, MeanField(model), epochs=1, compile=False)
    assert first.minutes == second.minutes > 0
    for name, (mean, _) in posterior.moments().items():
        assert torch.equal(mean, again.moments()[name][0])
    pruned = compression.prune(posterior, threshold=5.0)
    lesson = first.distillation_data(posterior.mean_network(), shifted=False)
    tuned = [
        own.fine_tune("b", pruned, lesson, epochs=1).module.state_dict() for own in (first, second)
    ]
    assert all(torch.equal(tuned[0][name], tuned[1][name]) for name in tuned[0])
    assert any(
        not torch.equal(tuned[0][name], pruned.module.state_dict()[name]) for name in tuned[0]
    )


def test_pruned_to_a_size_is_as_large_as_allowed():
    torch.manual_seed(0)
    posterior = grouped(MLP(6, (8, 7), 3))  # the groups with the highest numbers are kept first
    for size in (20, 40, 80):
        pruned = recipes.pruned_to(posterior, size)
        inputs, first, second = map(int, pruned.architecture.split("-"))
        assert pruned.dense == inputs * first + first * second + second * 3 <= size
        # one threshold t for all keeps the groups with numbers above -t: 6 - t', 8 - t', 7 - t' of them
        assert (8 - first, 7 - second) == (6 - inputs, 6 - inputs)
        larger = [n + 1 for n in (inputs, first, second)]
        assert larger[0] * larger[1] + larger[1] * larger[2] + larger[2] * 3 > size
    assert recipes.pruned_to(posterior, 1000).dense == 6 * 8 + 8 * 7 + 7 * 3


def test_a_posterior_without_groups_cannot_be_pruned_to_a_size():
    model = BayesianNet(MLP(4, (5,), 3), priors.Normal(1.0), likelihoods.Categorical(), num_data=10)
    with pytest.raises(ValueError, match="no groups"):
        recipes.pruned_to(Posterior.from_guide(model, MeanField(model)), 10)


def test_the_best_groups_of_every_layer_are_left():
    torch.manual_seed(0)
    posterior = grouped(LeNet5(size=16, filters=(4, 6), hidden=9))
    before, pruned = recipes.best_groups(posterior, (2, 3, 3, 5))
    assert pruned.architecture == "2-3-3-5"
    small = before.model.weights()
    assert small["conv1.weight"].shape[0] == 2
    full = posterior.model.weights()
    assert torch.equal(small["conv1.weight"], full["conv1.weight"][-2:])
    assert torch.equal(small["conv2.weight"], full["conv2.weight"][-3:, -2:])


def test_the_fewest_weights_are_those_with_the_least_noise():
    torch.manual_seed(0)
    model = BayesianNet(
        MLP(6, (8,), 3), priors.LogUniform(), likelihoods.Categorical(), num_data=10
    )
    guide = SparseVariationalDropout(model, init_log_variance=-4.0)
    posterior = Posterior.from_guide(model, guide)
    kept = sum(layer.kept for layer in recipes.prune_to_count(posterior, 30).report)
    assert 20 <= kept <= 30  # dead units take some more away
    means = torch.cat([mean.flatten() for mean, _ in posterior.moments().values()])
    least = (
        means.abs().sort(descending=True).values[29]
    )  # one variance for all: noise goes by the mean
    network = recipes.prune_to_count(posterior, 30).module
    left = torch.cat(
        [w[w != 0].abs() for name, w in network.named_parameters() if "weight" in name]
    )
    assert float(left.min().detach()) >= float(least)


def row(seed, error, **facts):
    own = Row(
        "m", seed, error, 1.0, weights=1000, nonzero=50, dense=200, architecture="1-2", minutes=3.0
    )
    return dataclasses.replace(own, **facts)


def test_a_table_has_means_and_ranges_over_seeds(tmp_path):
    folder = tmp_path / "sparse-vd" / "lenet-5"
    folder.mkdir(parents=True)
    rows = {
        "0-m-seed-0": row(0, 1.0, file_bytes=40),
        "0-m-seed-1": row(1, 2.0, file_bytes=20),
        "1-n-seed-0": row(0, 3.0),
    }
    for name, content in rows.items():
        (folder / f"{name}.json").write_text(json.dumps(dataclasses.asdict(content)))
    lines = tables.table("sparse-vd", "lenet-5", tmp_path).splitlines()
    assert len(lines) == 4
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[1:5] == [
        "0, 1",
        "1.50 % (1.00 % to 2.00 %)",
        "20.0x (20.0x to 20.0x)",
        "5.0x (5.0x to 5.0x)",
    ]
    assert cells[6] == "30 (20 to 40) bytes, 150x (100x to 200x)"
    assert "3.00 %" in lines[3]


def test_recipes_and_rows_that_there_are_none_of(tmp_path):
    with pytest.raises(ValueError, match="sparse-vd --network lenet-5"):
        next(tables.reproduce("sparse", "lenet-5", experiment(tmp_path), tmp_path))
    with pytest.raises(FileNotFoundError, match="holds no rows"):
        tables.table("sparse-vd", "lenet-5", tmp_path)


def test_a_recipe_by_groups_ends_with_small_networks_that_still_know_digits(tmp_path, monkeypatch):
    # so short a fit is not worth a compilation
    monkeypatch.setattr(
        reproduction, "fit", lambda *args, **options: fit(*args, **options | {"compile": False})
    )
    torch.manual_seed(0)
    own = experiment(tmp_path)
    teacher = recipes.pretrained(own, MLP(64, (20, 10), 10), {"3.weight": 0.1}, epochs=20)
    stages = (recipes.Stage(8, 900, tuning=10), recipes.Stage(4, 700, tuning=10))
    networks = list(recipes.by_groups(own, own.distillation_data(teacher), METHOD, stages))
    assert [n.dense <= size for n, size in zip(networks, (900, 700), strict=True)] == [True, True]
    for network in networks:
        assert tables.error_of(network.module, own.data.test) < 0.25  # chance is 0.9


@pytest.mark.filterwarnings("ignore:site")
def test_the_program_for_vgg_runs_at_a_sixteenth_of_the_width(tmp_path, monkeypatch):
    monkeypatch.setattr(
        reproduction, "fit", lambda *args, **options: fit(*args, **options | {"compile": False})
    )
    noise = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 3, 32, 32, generator=noise), torch.arange(300) % 10
    x[:, 0] += y[:, None, None] / 3
    data = Dataset(
        "colours",
        x[:200],
        y[:200],
        x[200:],
        y[200:],
        torch.zeros(3, 1, 1),
        torch.ones(3, 1, 1),
        classes=10,
    )
    own = Experiment(tmp_path, *hold_out(data, 50), progress=False)
    rows = list(tables.reproduce("bayesian-compression", "vgg-sixteenth", own, tmp_path / "rows"))
    assert [row.method for row in rows] == ["group normal-Jeffreys", "group horseshoe"]
    for row in rows:
        assert row.weights == sum(w.numel() for w in VGG(1 / 16).parameters() if w.dim() > 1)
        # a dead filter stays where its constant, behind a batch normalisation, meets the zeros of a padding
        assert len(row.architecture.split("-")) == 15
        assert 0 < row.nonzero <= row.dense < row.weights
        assert row.nonzero < 0.75 * row.weights
        assert row.note.startswith("colours, 6 epochs, ")
    assert "| vgg-sixteenth |" in tables.table(
        "bayesian-compression", "vgg-sixteenth", tmp_path / "rows"
    )


def test_every_network_has_its_data(monkeypatch, tmp_path):
    def damaged(_):
        raise DataError("damaged")

    monkeypatch.setattr(tables, "mnist", lambda _: digits())
    with pytest.raises(ValueError, match=r"hold_out: .*1437 .*5000"):
        tables.data_for("lenet-5", None)
    monkeypatch.setattr(tables, "cifar10", damaged)
    monkeypatch.setattr(tables, "cifar10_jpeg", lambda _: "the copy")
    monkeypatch.setattr(tables, "hold_out", lambda data, num: (data, num))
    assert tables.data_for("vgg", str(tmp_path)) == ("the copy", 5000)
    (tmp_path / "cifar-10-batches-bin").mkdir()
    with pytest.raises(DataError, match="damaged"):  # the copy does not stand in for it
        tables.data_for("vgg", str(tmp_path))


def test_labels_drawn_by_lot_are_those_that_are_memorised(tmp_path, monkeypatch):
    """The rows say what was fitted to which labels; the fits themselves are short here."""
    seen = []

    def briefly(own, name, sparse):
        torch.manual_seed(0)
        seen.append((own.data, own.num_data))
        prior = priors.LogUniform() if sparse else priors.Normal(1e3)
        model = BayesianNet(MLP(64, (30,), 10), prior, likelihoods.Categorical(), own.num_data)
        guide = (
            SparseVariationalDropout(model)
            if sparse
            else BernoulliDropout(model, recipes.random_labels_dropout_rate)
        )
        return own.fit(name, model, guide, epochs=30, kl_weight=linear_warmup(0, 10), compile=False)

    monkeypatch.setattr(recipes, "fit_random_labels", briefly)
    own = experiment(tmp_path)
    rows = list(tables._random_labels(own))
    whole = digits()
    by_lot, again, true = (data.y_train for data, _ in seen)
    assert [num for _, num in seen] == [1437] * 3
    assert torch.equal(by_lot, again)
    assert torch.equal(true, whole.y_train)
    assert (by_lot == true).float().mean() < 0.2
    assert [row.method for row in rows] == [
        *("binary dropout, random labels", "Sparse VD, random labels", "Sparse VD, true labels")
    ]
    dropout, forgotten, learned = rows
    assert dropout.nonzero == dropout.weights == 64 * 30 + 300
    assert dropout.note.startswith("1,437 images, training accuracy ")
    assert dropout.note.endswith(", rate 0.05")
    assert 0 <= forgotten.nonzero < learned.nonzero < learned.weights
    assert learned.test_error < 20 < forgotten.test_error
    assert " nats an image" in forgotten.note


def test_a_row_counts_the_weights_of_the_original_network(tmp_path):
    torch.manual_seed(0)
    own, net = experiment(tmp_path), MLP(64, (8, 7), 10)
    posterior = grouped(net)
    pruned = recipes.pruned_to(posterior, 300)
    smaller = Posterior.from_guide(*restrict(posterior, pruned))
    row = tables._row(own, net, "m", recipes.pruned_to(smaller, 200, METHOD.groups_by))
    assert row.weights == 64 * 8 + 8 * 7 + 7 * 10
    assert row.dense <= 200
