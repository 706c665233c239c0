"""BayesianNet against the plain network: the same weights must give the same outputs, and nothing may be left behind.

Statistical tests have fixed seeds; on a fresh seed a comparison at 5 standard errors fails falsely with a probability
of 6e-7 for each number compared.
"""

import copy
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pyro_bnn import ELBO, BayesianNet, guides, likelihoods, local_reparameterization, priors
from pyro_bnn.distributions import ImproperPriorError


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


class Text(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.table = nn.Embedding(7, 8)
        kinds = {
            "mha": lambda: nn.MultiheadAttention(8, 2, batch_first=True),
            "encoder": lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
            "lstm": lambda: nn.LSTM(8, 4, num_layers=2, batch_first=True, bidirectional=True),
            "gru": lambda: nn.GRU(8, 8, batch_first=True),
            "cell": lambda: nn.LSTMCell(8, 8),
        }
        self.kind, self.body = kind, kinds[kind]()
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        h = self.table(x)
        if self.kind == "mha":
            h = self.body(h, h, h, need_weights=False)[0]
        elif self.kind == "encoder":
            h = self.body(h)
        elif self.kind == "cell":
            return self.head(self.body(h[:, 0])[0])
        else:
            h = self.body(h)[0]
        return self.head(h.mean(1))


class Tied(nn.Module):
    """The decoder uses the weight of the encoder."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 5), nn.Linear(5, 3)
        self.table, self.out = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)
        self.out.weight = self.table.weight
        self.decoder.weight = nn.Parameter(torch.randn(3, 5))
        self.again = nn.Linear(3, 5)
        self.again.weight = self.encoder.weight

    def forward(self, x):
        h = self.again(self.decoder(torch.tanh(self.encoder(self.table(x)))))
        return self.out(self.decoder(h))


class Shared(nn.Module):
    """One module under two names, called twice."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = self.a
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.b(torch.relu(self.a(x))))


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Linear(3, 3), nn.ModuleDict({"last": nn.Linear(3, 3)})["last"])]
        )
        self.scale = nn.Parameter(torch.ones(3))
        self.keys = nn.Parameter(torch.randn(2, 3))

    def forward(self, x):
        return (self.blocks[0](x) * self.scale) @ self.keys.T


class Functional(nn.Module):
    """Weights that are not handed to a layer as they are."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.randn(3, 3))

    def forward(self, x):
        return x @ self.b[:] @ self.a.T


NETWORKS = {
    "convolution and batch norm": (ConvNet, lambda: torch.randn(6, 1, 5, 5)),
    "attention": (lambda: Text("mha"), lambda: torch.randint(7, (6, 4))),
    "encoder layer": (lambda: Text("encoder"), lambda: torch.randint(7, (6, 4))),
    "LSTM": (lambda: Text("lstm"), lambda: torch.randint(7, (6, 4))),
    "GRU": (lambda: Text("gru"), lambda: torch.randint(7, (6, 4))),
    "LSTM cell": (lambda: Text("cell"), lambda: torch.randint(7, (6, 4))),
    "tied weights": (Tied, lambda: torch.randint(4, (6,))),
    "shared layer": (Shared, lambda: torch.randn(6, 3)),
    "nested": (Nested, lambda: torch.randn(6, 3)),
    "functional": (Functional, lambda: torch.randn(6, 3)),
    "transposed convolution": (
        lambda: nn.Sequential(nn.ConvTranspose1d(2, 3, 2), nn.Flatten(), nn.Linear(12, 2)),
        lambda: torch.randn(6, 2, 3),
    ),
}
networks = pytest.mark.parametrize("name", NETWORKS)


def bayesian(net, prior=None, num_data=6, **options):
    return BayesianNet(
        net, prior or priors.Normal(), likelihoods.Categorical(), num_data, **options
    )


def new_weights(model):
    return {name: torch.randn_like(value) for name, value in model.weights().items()}


def load(net, model, weights):
    """Return a copy of the plain network with these weights: what the truth is."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        for name, value in weights.items():
            net.get_parameter(name).copy_(value)
    return net


def tensors_of(net):
    """Return every parameter and buffer object of every module, with its place."""
    slots = {}
    for module_name, module in net.named_modules():
        for kind in (module._parameters, module._buffers):
            slots |= {f"{module_name}.{name}": tensor for name, tensor in kind.items()}
    return slots


def assert_same_objects(before, after):
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)


# --- the outputs ------------------------------------------------------------------------------------------------------


@networks
@pytest.mark.parametrize("mode", ["train", "eval", "eval without gradients"])
def test_outputs_are_those_of_the_plain_network_with_these_weights(name, mode):
    make, inputs = NETWORKS[name]
    net, x = make().train(mode == "train"), inputs()
    model = bayesian(net).train(mode == "train")
    for _ in range(2):  # the second pass takes another way: the check for unread weights is done
        weights = new_weights(model)
        plain = load(net, model, weights)
        with torch.set_grad_enabled(mode != "eval without gradients"):
            outputs = poutine.condition(model, weights)(x)
            expected = plain(x)
        torch.testing.assert_close(outputs, expected)
        assert (
            outputs - net(x)
        ).abs().max() > 1e-3  # they are other weights than the network's own


@networks
def test_the_initial_weights_are_the_networks_own(name):
    make, inputs = NETWORKS[name]
    net, x = make().eval(), inputs()
    model = bayesian(net).eval()
    for own, value in model.weights().items():
        torch.testing.assert_close(value, net.get_parameter(own).detach())
    torch.testing.assert_close(poutine.condition(model, model.weights())(x), net(x))


@networks
def test_a_forward_pass_leaves_the_same_objects(name):
    make, inputs = NETWORKS[name]
    model, x = bayesian(make()), inputs()
    guide = guides.MeanField(model)
    y = torch.randint(2, (6,))
    before = tensors_of(model.net)
    ELBO(model, guide)(x, y).backward()
    model(x)
    assert_same_objects(before, tensors_of(model.net))
    copied = copy.deepcopy(model)  # no sample with a history is kept anywhere
    torch.testing.assert_close(
        poutine.condition(copied.eval(), model.weights())(x),
        poutine.condition(model.eval(), model.weights())(x),
    )


@networks
def test_a_failed_forward_pass_leaves_the_same_objects(name):
    make, inputs = NETWORKS[name]
    net, x = make(), inputs()

    def fail(module, args, output):
        raise ArithmeticError

    model = bayesian(net)
    before = tensors_of(model.net)
    handle = model.net.register_forward_hook(fail)
    for checked in (False, True):
        model._reads_checked = checked
        with pytest.raises(ArithmeticError):
            model(x)
        assert_same_objects(before, tensors_of(model.net))
    handle.remove()
    assert model(x).shape[0] == 6


@networks
def test_free_parameters_are_those_that_are_no_weights(name):
    make, inputs = NETWORKS[name]
    net, x = make(), inputs()
    model = bayesian(net)
    sites = set(model.names)
    free = {name.removeprefix("net.") for name in model.free_parameters()}
    everything = {name for name, _ in net.named_parameters()}
    assert free == everything - sites
    assert sites <= everything
    assert all(net.get_parameter(name).dim() >= 2 for name in sites)
    # every one of them gets a gradient: there is no dead weight among them
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = ELBO(model, guides.MeanField(model))
        loss(x, torch.randint(2, (6,))).backward()
    assert all(p.grad is not None for p in loss.parameters())


@networks
def test_the_callers_network_is_untouched(name):
    make, inputs = NETWORKS[name]
    net, x = make(), inputs()
    before, state = tensors_of(net), copy.deepcopy(net.state_dict())
    model = bayesian(net)
    ELBO(model, guides.MeanField(model))(x, torch.randint(2, (6,))).backward()
    model.freeze()
    assert_same_objects(before, tensors_of(net))
    for key, value in net.state_dict().items():
        torch.testing.assert_close(value, state[key])
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


@networks
def test_network_with_gives_back_a_plain_network(name):
    make, inputs = NETWORKS[name]
    net, x = make().eval(), inputs()
    model = bayesian(net).eval()
    weights = new_weights(model)
    back, plain = model.network_with(weights), load(net, model, weights)
    assert type(back) is type(net)
    assert [name for name, _ in back.named_parameters()] == [
        name for name, _ in net.named_parameters()
    ]
    assert back.state_dict().keys() == net.state_dict().keys()
    torch.testing.assert_close(back(x), plain(x))
    net.load_state_dict(back.state_dict())
    torch.testing.assert_close(net(x), plain(x))
    with torch.no_grad():  # it is a copy
        for p in back.parameters():
            p.zero_()
    torch.testing.assert_close(poutine.condition(model, weights)(x), plain(x))


@networks
@pytest.mark.filterwarnings(
    "ignore::pyro_bnn.variational.reparameterization.ReparameterizationWarning"
)
def test_under_local_reparameterization(name):
    make, inputs = NETWORKS[name]
    model, x = bayesian(make()), inputs()
    guide = guides.MeanField(
        model, init_scale=1e-6
    )  # hardly any noise: every way leads to the network's own outputs
    twice = {
        "tied weights": ["table.weight", "encoder.weight", "decoder.weight"],
        "shared layer": ["a.weight"],
    }
    loss = ELBO(model.eval(), local_reparameterization(guide, hide=twice.get(name, [])))
    outputs = loss.trace(x, torch.randint(2, (6,))).nodes["y"]["fn"].logits
    expected = model.network_with(model.weights())(x).log_softmax(-1)
    torch.testing.assert_close(outputs, expected, atol=2e-2, rtol=0)


def test_network_with_refuses_weights_that_do_not_fit():
    model = bayesian(nn.Linear(3, 2))
    with pytest.raises(
        ValueError, match=r"'weight' of shape \(2, 3\), got one of shape \(5, 2, 3\)"
    ):
        model.network_with({"weight": torch.zeros(5, 2, 3)})
    with pytest.raises(ValueError, match="got none"):
        model.network_with({})


def test_tied_weights_are_one_site_in_all_places():
    model = bayesian(Tied())
    assert model.names == ["encoder.weight", "decoder.weight", "table.weight"]
    assert {site.name: site.aliases for site in model.sites} == {
        "encoder.weight": ("encoder.weight", "again.weight"),
        "decoder.weight": ("decoder.weight",),
        "table.weight": ("table.weight", "out.weight"),
    }
    back = model.network_with(new_weights(model))
    assert back.out.weight is back.table.weight
    assert back.again.weight is back.encoder.weight
    assert bayesian(Tied(), {"out.weight": priors.Normal()}).names == [
        "table.weight"
    ]  # any of its names will do


def test_a_module_of_two_names_is_one_site():
    model = bayesian(Shared())
    assert model.names == ["a.weight", "head.weight"]
    assert model.net.a is model.net.b
    back = model.network_with(new_weights(model))
    assert back.a is back.b


def test_batch_norm_updates_its_running_statistics_in_training_only():
    net, x = ConvNet(), torch.randn(6, 1, 5, 5)
    model = bayesian(net)
    weights = new_weights(model)
    plain = load(net, model, weights)
    poutine.condition(model, weights)(x)
    plain(x)
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(
            getattr(model.net.features[1], key), getattr(plain.features[1], key)
        )
    assert (net.features[1].running_mean == 0).all()
    before = model.net.features[1].running_mean.clone()
    poutine.condition(model.eval(), weights)(x)
    assert (model.net.features[1].running_mean == before).all()


# --- priors -----------------------------------------------------------------------------------------------------------


class Recorder(nn.Module):
    """A prior that notes what it is called with."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def __deepcopy__(self, memo):
        return Recorder(self.calls)

    def forward(self, name, shape, group_dim):
        self.calls[name] = (tuple(shape), group_dim)
        return pyro.sample(name, dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape)))


def test_the_group_axis_of_every_kind_of_layer():
    class Zoo(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.table, self.lstm = nn.Linear(3, 4), nn.Embedding(7, 5), nn.LSTM(3, 2)
            self.conv1, self.conv2, self.conv3 = (
                nn.Conv1d(4, 6, 3),
                nn.Conv2d(4, 6, 3),
                nn.Conv3d(4, 6, 3),
            )
            self.up1, self.up2 = nn.ConvTranspose1d(4, 6, 3), nn.ConvTranspose2d(4, 6, 3)
            self.mha, self.own = nn.MultiheadAttention(4, 2), nn.Parameter(torch.randn(2, 3))

    calls = {}
    model = bayesian(Zoo(), {"*": Recorder(calls)})
    model.weights()
    axes = {name: axis for name, (_, axis) in calls.items() if name.endswith("weight")}
    assert axes == {
        "linear.weight": 1,  # the input units
        "table.weight": 0,  # one vector
        **dict.fromkeys(("conv1.weight", "conv2.weight", "conv3.weight"), 0),  # the output channels
        **dict.fromkeys(
            ("up1.weight", "up2.weight"), 1
        ),  # likewise: these kernels are (in, out, ...)
        **dict.fromkeys(("mha.in_proj_weight", "mha.out_proj.weight"), 1),
    }
    assert calls["lstm.weight_ih_l0"] == ((8, 3), 1)
    assert calls["own"] == ((2, 3), 1)
    assert calls["linear.bias"] == ((4,), None)
    assert {site.name: site.group_dim for site in model.sites} == {
        name: axis for name, (_, axis) in calls.items()
    }


def test_one_prior_is_for_all_weights_and_for_no_bias():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.BatchNorm2d(2),
        nn.LayerNorm([2, 3, 3]),
        nn.Flatten(),
        nn.Linear(18, 2),
    )
    model = bayesian(net)
    assert model.names == ["0.weight", "4.weight"]
    assert set(model.free_parameters()) == {
        f"net.{n}" for n in ("0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "4.bias")
    }
    assert bayesian(nn.MultiheadAttention(4, 2, add_bias_kv=True)).names == [
        "in_proj_weight",
        "out_proj.weight",
    ]


def test_patterns_types_and_none():
    def named(**scales):
        return {key: priors.Normal(scale) for key, scale in scales.items()}

    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Conv1d(3, 3, 1))
    everything = [f"{i}.{kind}" for i in range(3) for kind in ("weight", "bias")]

    def scales(prior):
        model = bayesian(net, prior)
        return {name: float(model.prior_of(name).scale) for name in model.names}

    assert scales({"*": priors.Normal(2.0)}) == dict.fromkeys(everything, 2.0)  # biases too
    assert scales({"*.weight": priors.Normal(2.0)}) == dict.fromkeys(everything[::2], 2.0)
    assert scales({nn.Linear: priors.Normal(2.0)}) == {"0.weight": 2.0, "1.weight": 2.0}
    assert scales({nn.Linear: priors.Normal(2.0), "*": priors.Normal(3.0)}) == {
        name: 2.0 if name in ("0.weight", "1.weight") else 3.0 for name in everything
    }
    # the first key that fits counts, whatever comes after
    assert scales({"1.*": None, "*.weight": priors.Normal(2.0)}) == {
        "0.weight": 2.0,
        "2.weight": 2.0,
    }
    assert scales({"*.weight": priors.Normal(2.0), "1.*": priors.Normal(3.0)}) == {
        "0.weight": 2.0,
        "1.weight": 2.0,
        "2.weight": 2.0,
        "1.bias": 3.0,
    }


def test_mistaken_priors_are_errors_that_help():
    net = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(
        ValueError,
        match=r"'0\.wieght' fits no parameter; there are 0\.weight, 0\.bias; did you mean '0\.weight'",
    ):
        bayesian(net, {"0.wieght": priors.Normal(), "*": priors.Normal()})
    with pytest.raises(ValueError, match=r"Conv2d.* fits no parameter"):
        bayesian(net, {nn.Conv2d: priors.Normal()})
    with pytest.raises(ValueError, match=r"no weight is left to be uncertain.*parameters are none"):
        bayesian(nn.ReLU())
    with pytest.raises(
        ValueError, match=r"no weight is left to be uncertain.*parameters are 0\.weight, 0\.bias"
    ):
        bayesian(net, {"*": None})
    for wrong in (dist.Normal(0.0, 1.0), priors.Normal, 1.0):
        with pytest.raises(TypeError, match=r"priors\.Elementwise"):
            bayesian(net, wrong)
        with pytest.raises(TypeError, match=r"priors\.Elementwise"):
            bayesian(net, {"*": wrong})


def test_a_plain_function_is_a_prior():
    def prior(name, shape, group_dim):
        s = pyro.sample(f"{name}_scale", dist.Gamma(2.0, 2.0))
        return pyro.sample(name, dist.Normal(0.0, s).expand(shape).to_event(len(shape)))

    net, x = nn.Linear(3, 2), torch.randn(6, 3)
    model = bayesian(net, prior)
    trace = poutine.trace(model).get_trace(x, torch.randint(2, (6,)))
    assert [name for name, site in trace.iter_stochastic_nodes() if name != "data"] == [
        "weight_scale",
        "weight",
    ]
    torch.testing.assert_close(model.weights()["weight"], net.weight.detach())
    assert ELBO(model, guides.MeanField(model))(x, torch.randint(2, (6,))).isfinite()


def test_parameters_of_priors_and_likelihoods_belong_to_one_model():
    prior, likelihood = priors.LearnedNormal(0.5), likelihoods.Gaussian()
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    one, other = (BayesianNet(net, prior, likelihood, 6) for _ in range(2))
    assert set(one.free_parameters()) == {
        *("net.0.bias", "net.1.bias", "likelihood.log_scale"),
        *("priors.0/weight.log_scale", "priors.1/weight.log_scale"),  # one for each weight
    }
    with torch.no_grad():
        for p in one.free_parameters().values():
            p.add_(1.0)
    one.freeze()
    torch.testing.assert_close(prior.log_scale.detach(), torch.tensor(0.5).log())
    assert all(
        p.requires_grad
        for p in (prior.log_scale, likelihood.log_scale, *other.free_parameters().values())
    )
    assert (other.likelihood.log_scale == likelihood.log_scale).all()


def test_an_unread_weight_is_an_error():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare, self.shape_only = (
                nn.Linear(3, 2),
                nn.Linear(3, 2),
                nn.Linear(3, 2),
            )

        def forward(self, x):
            assert self.shape_only.weight.shape == (2, 3)
            return self.used(x)

    with pytest.raises(
        ValueError, match=r"never reads spare\.weight, shape_only\.weight: .*prior None"
    ):
        bayesian(Net())(torch.randn(6, 3))
    model = bayesian(Net())
    guide = guides.MeanField(model)
    with pytest.raises(ValueError, match=r"never reads spare\.weight, shape_only\.weight"):
        ELBO(model, local_reparameterization(guide))(torch.randn(6, 3), torch.randint(2, (6,)))
    assert bayesian(Net(), {"spare.*": None, "shape_only.*": None, nn.Linear: priors.Normal()})(
        torch.randn(6, 3)
    ).shape == (6, 2)


# --- data and plates --------------------------------------------------------------------------------------------------


def test_sizes_that_do_not_fit_are_errors():
    model = bayesian(nn.Linear(3, 2), num_data=6)
    with pytest.raises(ValueError, match="same length, got 5 and 4"):
        model(torch.randn(5, 3), torch.randint(2, (4,)))
    with pytest.raises(ValueError, match="got 7 examples, but there are only num_data=6"):
        model(torch.randn(7, 3), torch.randint(2, (7,)))
    assert model(torch.randn(7, 3)).shape == (7, 2)  # predictions may be for any number
    with pytest.raises(ValueError, match="at least 1; got 0"):
        bayesian(nn.Linear(3, 2), num_data=0)
    for size in (0, 7):
        with pytest.raises(ValueError, match=f"subsample_size in 1 ... 6 .* got {size}"):
            bayesian(nn.Linear(3, 2), num_data=6, subsample_size=size)


def log_likelihoods(model, weights, x, y):
    return dist.Categorical(logits=model.network_with(weights)(x)).log_prob(y).detach()


def test_a_minibatch_is_scaled_to_the_whole_data_set():
    x, y = torch.randn(6, 3), torch.randint(2, (6,))
    model = bayesian(nn.Linear(3, 2), num_data=30)
    weights = new_weights(model)
    trace = poutine.trace(poutine.condition(model, weights)).get_trace(x, y)
    expected = log_likelihoods(model, weights, x, y).sum() * 30 / 6
    prior = dist.Normal(0.0, 1.0).log_prob(weights["weight"]).sum()
    torch.testing.assert_close(trace.log_prob_sum(lambda name, site: name == "y"), expected)
    torch.testing.assert_close(trace.log_prob_sum(), expected + prior)
    assert (trace.nodes["y"]["scale"], trace.nodes["weight"]["scale"]) == (5.0, 1.0)
    frame = trace.nodes["y"]["cond_indep_stack"][0]
    assert (frame.name, frame.size) == ("data", 6)


def test_the_plate_draws_distinct_examples_and_is_right_on_average():
    n, size, draws = 12, 4, 700
    x, y = torch.arange(n, dtype=torch.float).reshape(n, 1) / n, torch.randint(2, (n,))
    model = bayesian(nn.Linear(1, 2), num_data=n, subsample_size=size)
    weights = new_weights(model)
    each = log_likelihoods(model, weights, x, y)
    conditioned, values, seen = poutine.condition(model, weights), [], torch.zeros(n)
    for _ in range(draws):
        trace = poutine.trace(conditioned).get_trace(x, y)
        indices = trace.nodes["data"]["value"]
        assert len(set(indices.tolist())) == size
        seen[indices] += 1
        value = trace.log_prob_sum(lambda name, site: name == "y")
        torch.testing.assert_close(value, each[indices].sum() * n / size)
        torch.testing.assert_close(trace.nodes["y"]["value"], y[indices])
        values.append(value)
    values = torch.stack(values)
    assert (values.mean() - each.sum()).abs() < 5 * values.std() / math.sqrt(draws)
    # each example is drawn with probability size / n
    error = math.sqrt(size / n * (1 - size / n) / draws)
    assert ((seen / draws - size / n).abs() < 5 * error).all()


def test_with_subsample_size_a_minibatch_may_still_be_passed_in():
    model = bayesian(nn.Linear(3, 2), num_data=12, subsample_size=4)
    trace = poutine.trace(model).get_trace(torch.randn(5, 3), torch.randint(2, (5,)))
    assert trace.nodes["y"]["scale"] == 12 / 5
    assert model(torch.randn(12, 3)).shape == (12, 2)  # without y nothing is subsampled


def test_without_y_the_plate_has_the_size_of_x():
    model = bayesian(nn.Linear(3, 2), num_data=30)
    trace = poutine.trace(model).get_trace(torch.randn(7, 3))
    site = trace.nodes["y"]
    assert (site["scale"], tuple(site["value"].shape), site["is_observed"]) == (1.0, (7,), False)
    assert site["cond_indep_stack"][0].size == 7


# --- sites without sampling -------------------------------------------------------------------------------------------

EVERY_PRIOR = {
    "normal": (lambda: priors.Normal(), [""]),
    "learned": (lambda: priors.LearnedNormal(), [""]),
    "log-uniform": (lambda: priors.LogUniform(), [""]),
    "student": (lambda: priors.Elementwise(dist.StudentT(3.0, 0.0, 1.0)), [""]),
    "mixture": (lambda: priors.GaussianMixture([1.0, 0.1]), [""]),
    "jeffreys": (lambda: priors.NormalJeffreys(), [".scale", ".unit"]),
    "horseshoe": (lambda: priors.Horseshoe(1e-3), [".global_scale", ".scale", ".unit"]),
    "horseshoe, no groups": (
        lambda: priors.Horseshoe(1e-3, group=None),
        [".global_scale", ".scale", ".unit"],
    ),
    "slab": (lambda: priors.Horseshoe(1e-3, slab=0.5), [".global_scale", ".scale", ".unit"]),
    "decomposed": (
        lambda: priors.Horseshoe(1e-3, decomposed=True),
        [
            f".{kind}.{part}"
            for kind in ("global_scale", "scale")
            for part in ("gamma", "inverse_gamma")
        ]
        + [".unit"],
    ),
    "decomposed slab": (
        lambda: priors.Horseshoe(1e-3, slab=0.5, decomposed=True),
        [
            f".{kind}.{part}"
            for kind in ("global_scale", "scale")
            for part in ("gamma", "inverse_gamma")
        ]
        + [".unit"],
    ),
}
every_prior = pytest.mark.parametrize("kind", EVERY_PRIOR)


@every_prior
def test_sites_are_listed_without_sampling_and_compose_the_networks_own_weight(kind):
    make, parts = EVERY_PRIOR[kind]
    net = nn.Sequential(nn.Conv2d(1, 3, (2, 3)), nn.Flatten(), nn.Linear(3, 2))
    model = bayesian(net, {"*": make()})
    state = torch.get_rng_state()
    trace = poutine.trace(model.weights).get_trace()
    weights = model.weights()
    assert (torch.get_rng_state() == state).all()  # no random number was drawn
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(weights[name], parameter.detach(), rtol=1e-5, atol=1e-6)
    latent = [name for name, site in trace.iter_stochastic_nodes()]
    assert latent == [f"{name}{part}" for name, _ in net.named_parameters() for part in parts]


def test_initialize_lists_the_unknowns_of_the_likelihood_too():
    model = BayesianNet(
        nn.Linear(3, 1),
        priors.NormalJeffreys(),
        likelihoods.Gaussian(dist.HalfNormal(1.0)),
        num_data=6,
    )
    trace = poutine.trace(model.initialize).get_trace()
    latent = [name for name, _ in trace.iter_stochastic_nodes()]
    assert latent == ["weight.scale", "weight.unit", "noise"]
    assert trace.nodes["noise"]["value"] == 1
    full = poutine.trace(poutine.replay(model, trace=trace)).get_trace(
        torch.randn(6, 3), torch.randn(6)
    )
    assert [name for name, _ in full.iter_stochastic_nodes() if name != "data"] == latent
    assert not [
        name for name in full.nodes if name == "noise" and full.nodes[name]["cond_indep_stack"]
    ]


def test_replayed_sites_make_the_weights():
    model = bayesian(nn.Linear(3, 2), priors.NormalJeffreys())
    guide = guides.MeanField(model, init_scale=0.5)
    trace = poutine.trace(guide).get_trace()
    weights = poutine.replay(model.weights, trace=trace)()
    expected = trace.nodes["weight.scale"]["value"] * trace.nodes["weight.unit"]["value"]
    torch.testing.assert_close(weights["weight"], expected)


# --- state, copies, devices -------------------------------------------------------------------------------------------


@every_prior
def test_double_precision_goes_all_the_way(kind):
    make, _ = EVERY_PRIOR[kind]
    model = bayesian(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), make()).double()
    guide = guides.MeanField(model)
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randint(2, (6,))
    loss = ELBO(model, guide)(x, y)
    assert loss.dtype == torch.float64
    assert all(p.dtype == torch.float64 for p in guide.parameters())
    assert all(w.dtype == torch.float64 for w in model.weights().values())


@every_prior
def test_construction_on_the_meta_device(kind):
    make, _ = EVERY_PRIOR[kind]
    if kind == "student":
        pytest.skip("Pyro's own StudentT cannot be built there")
    with torch.device("meta"):
        model = bayesian(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), make())
    tensors = [*model.parameters(), *model.buffers()]
    assert all(tensor.is_meta for tensor in tensors)
    real = bayesian(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), make())
    model = model.to_empty(device="cpu")
    model.load_state_dict(real.state_dict())
    for name, value in real.weights().items():
        torch.testing.assert_close(model.weights()[name], value)
    assert ELBO(model, guides.MeanField(model))(
        torch.randn(6, 3), torch.randint(2, (6,))
    ).isfinite()


@every_prior
def test_state_dict_round_trip(kind):
    make, _ = EVERY_PRIOR[kind]
    one, other = (
        bayesian(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), make()) for _ in range(2)
    )
    other.load_state_dict(one.state_dict())
    for name, value in one.weights().items():
        torch.testing.assert_close(other.weights()[name], value)
    for (name, value), (other_name, other_value) in zip(
        one.named_parameters(), other.named_parameters(), strict=True
    ):
        assert name == other_name
        torch.testing.assert_close(value, other_value)


def test_a_copy_shares_nothing():
    model = bayesian(Tied(), {"*": priors.LearnedNormal()})
    other = copy.deepcopy(model)
    mine = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    assert not mine & {id(tensor) for tensor in (*other.parameters(), *other.buffers())}
    x = torch.randint(4, (6,))
    weights = new_weights(model)
    torch.testing.assert_close(
        poutine.condition(model, weights)(x), poutine.condition(other, weights)(x)
    )


@networks
def test_frozen_models_have_only_sites(name):
    make, inputs = NETWORKS[name]
    net, x = make().eval(), inputs()
    model = BayesianNet(net, priors.Normal(), likelihoods.Categorical(), num_data=6).eval()
    weights = new_weights(model)
    before = poutine.condition(model, weights)(x).detach()
    assert model.freeze() is model
    assert not list(model.parameters())
    assert not model.free_parameters()
    torch.testing.assert_close(poutine.condition(model, weights)(x), before)
    torch.testing.assert_close(model.network_with(weights)(x), before)
    assert ELBO(model, guides.MeanField(model))(x, torch.randint(2, (6,))).isfinite()


def test_freezing_holds_the_noise_and_the_scales_of_priors():
    model = BayesianNet(
        nn.Linear(3, 1), priors.LearnedNormal(0.5), likelihoods.Gaussian(), num_data=6
    )
    x, y = torch.randn(6, 3), torch.randn(6)
    weights = new_weights(model)
    before = poutine.trace(poutine.condition(model, weights)).get_trace(x, y).log_prob_sum()
    model.freeze()
    trace = poutine.trace(poutine.condition(model, weights)).get_trace(x, y)
    torch.testing.assert_close(trace.log_prob_sum(), before)
    assert not [name for name, site in trace.nodes.items() if site["type"] == "param"]


# --- stock Pyro -------------------------------------------------------------------------------------------------------


def test_stock_svi_with_a_stock_guide_learns_the_exact_posterior():
    # one weight, known noise: precision 1 / s^2 + sum x^2 / noise^2
    x = torch.linspace(-1, 1, 20)[:, None]
    y = 0.7 * x[:, 0] + 0.1 * torch.randn(20)
    model = BayesianNet(
        nn.Linear(1, 1, bias=False), priors.Normal(1.0), likelihoods.Gaussian(0.5), num_data=20
    )
    guide = AutoNormal(model)
    svi = SVI(
        model,
        guide,
        pyro.optim.Adam({"lr": 0.05}),
        Trace_ELBO(num_particles=3, vectorize_particles=False),
    )
    for _ in range(150):
        svi.step(x, y)
    precision = 1 + (x.square().sum() / 0.25).item()
    mean = (x[:, 0] @ y / 0.25).item() / precision
    with torch.no_grad():
        q = poutine.trace(guide).get_trace(x, y).nodes["weight_unconstrained"]["fn"].base_dist
    assert abs(q.loc.item() - mean) < 0.2 * precision**-0.5
    assert abs(q.scale.item() / precision**-0.5 - 1) < 0.2
    samples = Predictive(model, guide=guide, num_samples=50)(x)
    assert samples["weight"].numel() == 50
    assert samples["y"].shape == (50, 20)


def test_stock_svi_learns_the_free_parameters():
    x, y = torch.randn(20, 3), torch.randn(20) + 3
    model = BayesianNet(nn.Linear(3, 1), priors.Normal(1.0), likelihoods.Gaussian(), num_data=20)
    guide = AutoNormal(model)
    before = {name: value.detach().clone() for name, value in model.free_parameters().items()}
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    for _ in range(30):
        svi.step(x, y)
    assert all(
        (value - before[name]).abs().min() > 0.1 for name, value in model.free_parameters().items()
    )


def test_the_trace_of_the_program():
    model = BayesianNet(
        nn.Linear(3, 1),
        {"*": priors.Normal()},
        likelihoods.Gaussian(dist.HalfNormal(1.0)),
        num_data=6,
    )
    x, y = torch.randn(6, 3), torch.randn(6)
    trace = poutine.trace(model).get_trace(x, y)
    sites = [
        name for name, site in trace.nodes.items() if site["type"] == "sample" and name != "data"
    ]
    assert sites == ["weight", "bias", "noise", "y"]
    values = {name: trace.nodes[name]["value"] for name in ("weight", "bias", "noise")}
    expected = (
        dist.Normal(F.linear(x, values["weight"], values["bias"])[:, 0], values["noise"])
        .log_prob(y)
        .sum()
    )
    expected = expected + sum(
        dist.Normal(0.0, 1.0).log_prob(values[name]).sum() for name in ("weight", "bias")
    )
    expected = expected + dist.HalfNormal(1.0).log_prob(values["noise"])
    torch.testing.assert_close(trace.log_prob_sum(), expected)


def test_the_prior_predictive_needs_a_proper_prior():
    x = torch.randn(5, 3)
    proper = bayesian(nn.Linear(3, 2), priors.Horseshoe())
    assert Predictive(proper, num_samples=4)(x)["y"].shape == (4, 5)
    for improper in (priors.LogUniform(), priors.NormalJeffreys()):
        model = bayesian(nn.Linear(3, 2), improper)
        with pytest.raises(ImproperPriorError):
            Predictive(model, num_samples=4)(x)
        with pytest.raises(ImproperPriorError):
            model(x)
