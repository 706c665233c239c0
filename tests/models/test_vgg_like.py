"""The VGG-like network has its published size, and group priors prune a trained one."""

import pytest
import torch
from torch import nn

from pyro_bnn import fit, linear_warmup, priors
from pyro_bnn.compression import prune
from pyro_bnn.guides import GroupHorseshoe, GroupNormalJeffreys
from pyro_bnn.models import VGG, vgg


def weights(net):
    return [p for p in net.parameters() if p.dim() > 1]


def test_vgg_has_its_published_size():
    with torch.device("meta"):
        net = VGG()
    assert sum(p.numel() for p in weights(net)) == 14_977_728
    assert [p.shape[0] for p in weights(net)] == [64, 64, 128, 128, *[256] * 3, *[512] * 6, 512, 10]
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in net.modules()) == 5


def test_width_size_channels_and_classes_of_vgg_are_arguments():
    assert VGG(width=1 / 16)(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    net = VGG(width=1 / 16, size=64, channels=1, outputs=4)
    assert net(torch.randn(2, 1, 64, 64)).shape == (2, 4)
    assert [p.shape[0] for p in weights(net)] == [4, 4, 8, 8, *[16] * 3, *[32] * 6, 32, 4]
    for size in (28, 16, 48):
        with pytest.raises(ValueError, match=f"got {size} x {size}"):
            VGG(size=size)
    with pytest.raises(ValueError, match="leaves no filters"):
        VGG(width=0.001)


def test_the_model_starts_from_a_trained_network():
    net = VGG(width=1 / 16)
    model = vgg(100, net=net)
    assert len(model.names) == 15
    assert all(isinstance(model.prior_of(name), priors.NormalJeffreys) for name in model.names)
    assert torch.allclose(model.weights()["fc1.weight"], net.fc1.weight)
    assert not any("weight" in name and "features.0." in name for name in model.free_parameters())
    assert list(vgg(100, {nn.Linear: priors.Normal()}, width=1 / 16).names) == [
        "fc1.weight",
        "fc2.weight",
    ]
    with pytest.raises(ValueError, match="leave out width"):
        vgg(100, net=net, width=0.5)


def images(n=400, seed=0):
    """Four classes: bars of one color, upright or lying, at random places, with noise."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 4
    x = 0.5 * torch.randn(n, 3, 32, 32, generator=generator)
    at = torch.randint(4, 26, (n,), generator=generator).tolist()
    for image, label, place in zip(x, y.tolist(), at, strict=True):
        bar = image[label // 2]
        (bar if label % 2 else bar.T)[place : place + 3] += 2.0
    return x, y


def trained(x, y):
    torch.manual_seed(0)
    net = VGG(width=1 / 16, outputs=4)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3, weight_decay=1e-4)
    for _ in range(5):
        for rows in torch.randperm(len(x)).split(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def start():
    return trained(*images())


def accuracy(net, x, y):
    with torch.no_grad():
        return (net.eval()(x).argmax(1) == y).float().mean().item()


@pytest.mark.filterwarnings("ignore:site")
@pytest.mark.parametrize(
    ("prior", "guide_class", "measure"),
    [
        (priors.NormalJeffreys(), GroupNormalJeffreys, "log_alpha"),
        (priors.Horseshoe(1e-3, decomposed=True), GroupHorseshoe, "negative_log_mode"),
    ],
)
def test_group_priors_prune_a_trained_network(start, prior, guide_class, measure):
    x, y = images()
    x_test, y_test = images(seed=1)
    assert accuracy(start, x_test, y_test) > 0.95
    model = vgg(len(x), prior, net=start)
    result = fit(
        model,
        guide_class(model, init_log_variance=-6.0),
        (x, y),
        epochs=2,
        batch_size=40,
        learning_rate=2e-3,
        kl_weight=linear_warmup(0, 20),
        progress=False,
    )
    assert result.history["kl"][1] < result.history["kl"][0]
    assert accuracy(result.posterior.mean_network(), x_test, y_test) > 0.8
    # the noisiest quarter of each layer: two epochs open no gap yet
    measures = getattr(result.guide, measure)()
    thresholds = {name: value.quantile(0.75).item() for name, value in measures.items()}
    pruned = prune(result.posterior, group_threshold=thresholds)
    means = result.posterior.mean_network()
    for name, value in measures.items():
        keep = value < thresholds[name]
        assert torch.equal(pruned.groups[name], keep)
        masked = pruned.masked.get_parameter(name)
        group_axis = 0 if value.shape[0] > 1 else 1
        groups = (masked != 0).movedim(group_axis, 0).flatten(1)
        assert not groups[~keep.flatten()].any()  # whole filters, whole inputs
        assert torch.equal(means.get_parameter(name)[masked != 0], masked[masked != 0])
    assert pruned.ratio > 4 / 3 * 0.95
    with torch.no_grad():
        outputs, expected = pruned.module(x_test), pruned.masked.eval()(x_test)
    assert torch.allclose(outputs, expected, rtol=1e-3, atol=1e-4)
