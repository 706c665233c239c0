import io

import pytest
import torch
from matplotlib.figure import Figure

from pyro_bnn import BayesianNet, Posterior, compression, likelihoods, priors
from pyro_bnn.guides import MeanField
from pyro_bnn.plotting import posterior as plots


@pytest.fixture
def history():
    return {
        "epoch": [1, 2, 3],
        "data": [2.0, 0.5, 0.25],
        "kl": [9.0, 3.0, 1.0],
        "kl_weight": [0.0, 0.5, 1.0],
    }


@pytest.fixture
def posterior():
    torch.manual_seed(0)
    net = torch.nn.Linear(16, 3)
    model = BayesianNet(net, priors.Normal(1.0), likelihoods.Categorical(), num_data=30)
    return Posterior.from_guide(model, MeanField(model, init_scale=0.3))


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(30, 16, generator=generator), torch.randint(3, (30,), generator=generator)


def is_drawn(figure):
    """It is a Figure that can be saved, without a warning."""
    assert isinstance(figure, Figure)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=50)
    return len(stream.getvalue()) > 2000


def titles(figure):
    return " ".join(axes.get_title(loc) for axes in figure.axes for loc in ("left", "center"))


def test_loss_terms_draws_the_history(history):
    figure = plots.loss_terms(history)
    above, below = figure.axes
    assert [line.get_ydata().tolist() for line in above.lines] == [history["data"], history["kl"]]
    assert below.lines[0].get_ydata().tolist() == history["kl_weight"]
    assert above.get_ylabel() == "nats per example"
    assert above.get_yscale() == "log"
    assert "data term 0.25" in titles(figure)
    assert is_drawn(figure)


def test_loss_terms_takes_negative_terms_and_no_epochs(history):
    assert plots.loss_terms({**history, "data": [1.0, -0.5, -1.0]}).axes[0].get_yscale() == "linear"
    assert is_drawn(plots.loss_terms({key: [] for key in history}))


def test_weight_matrices_draws_every_weight_that_is_left():
    before = torch.randn(10, 16, generator=torch.Generator().manual_seed(0))
    after = torch.zeros(10, 16)
    after[2, 3], after[7, 15] = 0.5, -0.25
    figure = plots.weight_matrices(before, after)
    dense, sparse, fields = figure.axes
    assert dense.images[0].get_array().shape == (10, 16)
    assert sparse.collections[0].get_offsets().tolist() == [[3, 2], [15, 7]]
    assert (torch.tensor(fields.images[0].get_array().filled(0)) != 0).sum() == 2
    assert "2 of 160" in figure.get_suptitle()
    assert is_drawn(figure)


@pytest.mark.parametrize("inputs", [9, 10])
def test_weight_matrices_draws_images_only_of_square_inputs(inputs):
    figure = plots.weight_matrices(torch.ones(4, inputs), torch.zeros(4, inputs))
    assert len(figure.axes) == (3 if inputs == 9 else 2)
    assert is_drawn(figure)


def test_accuracy_against_draws_averages_the_first_draws(posterior, images):
    x, y = images
    pruned = compression.prune(posterior)
    figure = plots.accuracy_against_draws(posterior, x, y, pruned, draws=7)
    probs = torch.cat([part["probs"] for part in posterior.components(x, 7)])
    for k in (1, 4, 7):
        mean = probs[:k].double().mean(0)
        accuracy, nll = (axes.lines[0].get_ydata()[k - 1] for axes in figure.axes)
        assert accuracy == pytest.approx(100 * (mean.argmax(-1) == y).double().mean().item())
        assert nll == pytest.approx(-mean[range(30), y].log().mean().item())
    scores = pruned.module(x).detach()
    dashed = [axes.lines[1].get_ydata()[0] for axes in figure.axes]
    expected = [
        100 * (scores.argmax(-1) == y).double().mean().item(),
        torch.nn.functional.cross_entropy(scores, y).item(),
    ]
    assert dashed == pytest.approx(expected)
    assert is_drawn(figure)


def test_accuracy_against_draws_needs_no_pruned_network(posterior, images):
    figure = plots.accuracy_against_draws(posterior, *images, draws=3)
    assert [len(axes.lines) for axes in figure.axes] == [1, 1]


def test_certain_digits_orders_by_entropy(posterior, images):
    x, y = images
    prediction = posterior.predict(x, 10)
    figure = plots.certain_digits(prediction, x, y, columns=3)
    order = prediction.total.argsort(stable=True)
    shown = [torch.tensor(axes.images[0].get_array().filled()) for axes in figure.axes]
    for image, i in zip(shown, [*order[:3], *order.flip(0)[:3]], strict=True):
        assert torch.equal(image, x[i].reshape(4, 4))
        answer = prediction.mean[i].argmax()
        axes = next(axes for axes, other in zip(figure.axes, shown, strict=True) if other is image)
        assert axes.get_title() == (f"{answer}" if answer == y[i] else f"{answer}, is {y[i]}")
        assert axes.get_xlabel().endswith(" nats")
    assert is_drawn(figure)


def test_certain_digits_takes_fewer_images_than_columns(posterior, images):
    x, y = images[0][:2], images[1][:2]
    assert is_drawn(plots.certain_digits(posterior.predict(x, 5), x, y))


def test_regression_bands_sorts_its_inputs():
    x = torch.tensor([[3.0], [1.0], [2.0]])
    mean = torch.tensor([30.0, 10.0, 20.0])
    figure = plots.regression_bands(
        x,
        mean,
        mean - 5,
        mean + 5,
        data=(torch.tensor([1.5]), torch.tensor([14.0])),
        truth=mean + 1,
        epistemic=torch.ones(3),
    )
    (axes,) = figure.axes
    drawn = {line.get_label(): line for line in axes.lines}
    assert drawn["predictive mean"].get_xdata().tolist() == [1, 2, 3]
    assert drawn["predictive mean"].get_ydata().tolist() == [10, 20, 30]
    assert drawn["true function"].get_ydata().tolist() == [11, 21, 31]
    assert drawn["data"].get_ydata().tolist() == [14]
    band, inner = (collection.get_paths()[0].vertices[:, 1] for collection in axes.collections)
    assert (band.min(), band.max(), inner.min(), inner.max()) == (5, 35, 9, 31)
    assert "90% interval" in [text.get_text() for text in axes.get_legend().get_texts()]
    assert is_drawn(figure)


def test_summary_draws_the_sizes(posterior, images):
    x, y = images
    after = compression.prune(posterior).module.weight
    figure = plots.summary([(1, 30), (2, 20)], after, posterior.predict(x, 5), x, y, 48, 0.5)
    line = figure.axes[0].lines[0]
    assert line.get_xydata().tolist() == [[0, 48], [1, 30], [2, 20]]
    assert "48 weights become 20" in titles(figure)
    assert is_drawn(figure)


def test_no_picture_touches_pyplot(history):
    import subprocess
    import sys

    code = (
        "import sys; from pyro_bnn.plotting import posterior as plots;"
        f"plots.loss_terms({history!r}).savefig(sys.stdout.buffer);"
        "print('matplotlib.pyplot' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stderr.decode().split()[-1] == "False"
