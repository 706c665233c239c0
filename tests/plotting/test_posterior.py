"""Figures of fits and predictions."""

import subprocess
import sys

import pytest
import torch

from pyro_bnn import BayesianNet, Posterior, compression, likelihoods, plotting, priors
from pyro_bnn.guides import MeanField
from tests.plotting.figures import is_drawn, pixels, titles


@pytest.fixture
def history():
    return {
        "epoch": [1, 2, 3],
        "data": [2.0, 0.5, 0.25],
        "kl": [9.0, 3.0, 1.0],
        "kl_weight": [0.0, 0.5, 1.0],
    }


def test_loss_terms_are_the_columns_of_the_history(history):
    figure = plotting.plot_loss_terms(history)
    above, below = figure.axes
    assert [line.get_ydata().tolist() for line in above.lines] == [history["data"], history["kl"]]
    assert below.lines[0].get_ydata().tolist() == history["kl_weight"]
    assert above.get_ylabel() == "nats per example"
    assert above.get_yscale() == "log"
    assert "data term 0.25" in titles(figure)
    assert is_drawn(figure)


def test_negative_loss_terms_are_on_a_linear_axis(history):
    figure = plotting.plot_loss_terms({**history, "data": [1.0, -0.5, -1.0]})
    assert figure.axes[0].get_yscale() == "linear"


def test_a_history_without_epochs_can_be_drawn(history):
    assert is_drawn(plotting.plot_loss_terms({key: [] for key in history}))


def test_accuracy_against_draws_averages_the_first_draws(posterior, images):
    x, y = images
    figure = plotting.plot_accuracy_against_draws(posterior, x, y, draws=7)
    left, right = figure.axes
    probs = torch.cat([part["probs"] for part in posterior.components(x, 7)])
    for k in (1, 4, 7):
        mean = probs[:k].double().mean(0)
        accuracy = 100 * (mean.argmax(-1) == y).double().mean().item()
        assert left.lines[0].get_ydata()[k - 1] == pytest.approx(accuracy)
        nll = -mean[range(30), y].log().mean().item()
        assert right.lines[0].get_ydata()[k - 1] == pytest.approx(nll)
    assert [len(axes.lines) for axes in figure.axes] == [1, 1]
    assert is_drawn(figure)


def test_accuracy_against_draws_shows_the_pruned_network_as_dashed_lines(posterior, images):
    x, y = images
    pruned = compression.prune(posterior)
    figure = plotting.plot_accuracy_against_draws(posterior, x, y, pruned, draws=3)
    scores = pruned.module(x).detach()
    accuracy = 100 * (scores.argmax(-1) == y).double().mean().item()
    nll = torch.nn.functional.cross_entropy(scores, y).item()
    dashed = [axes.lines[1].get_ydata()[0] for axes in figure.axes]
    assert dashed == pytest.approx([accuracy, nll])


def test_certain_digits_are_ordered_by_their_entropy(posterior, images):
    x, y = images
    prediction = posterior.predict(x, 10)
    figure = plotting.plot_certain_digits(prediction, x, y, columns=3)
    order = prediction.total.argsort(stable=True)
    indices = [*order[:3].tolist(), *order.flip(0)[:3].tolist()]
    for axes, i in zip(figure.axes, indices, strict=True):
        assert (torch.tensor(pixels(axes)) == x[i].reshape(4, 4)).all()
        answer = int(prediction.mean[i].argmax())
        title = f"{answer}" if answer == y[i] else f"{answer}, is {y[i]}"
        assert axes.get_title() == title
        assert axes.get_xlabel().endswith(" nats")
    assert is_drawn(figure)


def test_certain_digits_take_fewer_images_than_columns(posterior, images):
    x, y = images[0][:2], images[1][:2]
    assert is_drawn(plotting.plot_certain_digits(posterior.predict(x, 5), x, y))


@pytest.fixture
def regression():
    """Return the posterior of a line with known noise."""
    torch.manual_seed(0)
    net = torch.nn.Linear(1, 1)
    model = BayesianNet(net, priors.Normal(1.0), likelihoods.Gaussian(0.1), num_data=10)
    return Posterior.from_guide(model, MeanField(model, init_scale=0.3))


def test_regression_bands_are_drawn_over_sorted_inputs(regression):
    x = torch.tensor([[3.0], [1.0], [2.0]])
    prediction = regression.predict(x, 20)
    data = torch.tensor([1.5]), torch.tensor([14.0])
    truth = torch.tensor([31.0, 11.0, 21.0])
    figure = plotting.plot_regression_bands(x, prediction, data, truth, level=0.8)
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    order = [1, 2, 0]
    mean = prediction.mean[order]
    assert lines["predictive mean"].get_xdata().tolist() == [1, 2, 3]
    assert lines["predictive mean"].get_ydata().tolist() == mean.tolist()
    assert lines["true function"].get_ydata().tolist() == [11, 21, 31]
    assert lines["data"].get_ydata().tolist() == [14]
    interval, epistemic = (band.get_paths()[0].vertices[:, 1] for band in axes.collections)
    lower, upper = prediction.interval(0.8)
    assert interval.min() == pytest.approx(float(lower.min()))
    assert interval.max() == pytest.approx(float(upper.max()))
    deviation = prediction.epistemic.sqrt()[order]
    assert epistemic.min() == pytest.approx(float((mean - deviation).min()))
    assert epistemic.max() == pytest.approx(float((mean + deviation).max()))
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "80% interval of y" in legend
    assert is_drawn(figure)


def test_figures_leave_pyplot_alone_and_plotting_imports_no_matplotlib(history):
    code = (
        "import sys; from pyro_bnn import plotting;"
        "print('matplotlib' in sys.modules, file=sys.stderr);"
        f"plotting.plot_loss_terms({history!r}).savefig(sys.stdout.buffer);"
        "print('matplotlib.pyplot' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stderr.decode().split()[-2:] == ["False", "False"]
