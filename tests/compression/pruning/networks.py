"""Networks of every kind that can be shrunk, and random zeros for their weights."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from pyro_bnn.models import LeNet5, LeNet300100


class Residual(nn.Module):
    """Two blocks with additions, one of them across a 1x1 convolution."""

    def __init__(self, padding=1, act=F.relu):
        super().__init__()
        self.act = act
        self.stem = nn.Conv2d(2, 6, 3, padding=padding)
        self.conv1, self.bn1 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.down, self.conv3 = nn.Conv2d(6, 8, 1, bias=False), nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.act(self.stem(x))
        x = self.act(x + self.bn2(self.conv2(self.act(self.bn1(self.conv1(x))))))
        x = self.act(self.down(x) + self.conv3(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class ResidualMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(5, 8)
        self.b = nn.Linear(8, 8)
        self.c = nn.Linear(8, 8)
        self.d = nn.Linear(8, 2)

    def forward(self, x):
        h = torch.sigmoid(self.a(x))
        g = h + torch.tanh(self.b(h))
        return self.d(g + self.c(h))


class Viewed(nn.Module):
    """Methods and views instead of layers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 5, 3, stride=2)
        self.fc1 = nn.Linear(5 * 9, 7)
        self.fc2 = nn.Linear(7, 2)

    def forward(self, x):
        h = self.conv(x.view(-1, 1, 8, 8)).tanh()
        return self.fc2(self.fc1(h.view(h.size(0), -1)).sigmoid_())


class Constants(nn.Module):
    """Views with written-out sizes."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 5, 3), nn.Linear(5 * 36, 3)

    def forward(self, x):
        return self.fc(F.elu(self.conv(x)).reshape(-1, 5 * 36))


def mlp(act):
    return lambda: nn.Sequential(
        nn.Linear(9, 8), act, nn.Linear(8, 7), act, nn.Linear(7, 6), act, nn.Linear(6, 3)
    )


def images(*layers, out, channels=2, head=nn.Linear):
    return lambda: nn.Sequential(
        *copy.deepcopy(layers), nn.Flatten(), head(out, 6), nn.Tanh(), nn.Linear(6, 3)
    )


C, R, P = nn.Conv2d, nn.ReLU(inplace=True), nn.MaxPool2d(2)
IMAGE, PIXELS, SERIES = (2, 8, 8), (9,), (2, 12)
# fmt: off
NETWORKS = {
    "relu": (mlp(nn.ReLU()), PIXELS),
    "tanh": (mlp(nn.Tanh()), PIXELS),
    "sigmoid": (mlp(nn.Sigmoid()), PIXELS),
    "softplus": (mlp(nn.Softplus(2.0)), PIXELS),
    "gelu": (mlp(nn.GELU("tanh")), PIXELS),
    "leaky": (mlp(nn.LeakyReLU(0.2)), PIXELS),
    "silu": (mlp(nn.SiLU()), PIXELS),
    "elu": (mlp(nn.ELU(0.7)), PIXELS),
    "dropout and batch norm": (
        lambda: nn.Sequential(
            nn.Linear(9, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)
        ),
        PIXELS,
    ),
    "norm of the input": (
        lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(9), nn.Linear(9, 4)),
        (3, 3),
    ),
    "plain": (images(C(2, 5, 3), R, P, C(5, 6, 2), R, out=24), IMAGE),
    "padded": (images(C(2, 5, 3, padding=1), R, P, C(5, 6, 3, padding="same"), R, out=96), IMAGE),
    "reflected": (
        images(
            C(2, 5, 3, padding=1), R,
            C(5, 6, 3, padding=1, padding_mode="reflect"), R, P, out=96,
        ),
        IMAGE,
    ),
    "stride and dilation": (
        images(C(2, 5, 3, stride=2), nn.Tanh(), C(5, 6, 2, dilation=2), R, out=6),
        IMAGE,
    ),
    "batch norm": (
        images(
            C(2, 5, 3, bias=False), nn.BatchNorm2d(5), R,
            C(5, 6, 3), nn.BatchNorm2d(6), R, out=96,
        ),
        IMAGE,
    ),
    "average": (images(C(2, 5, 3), R, nn.AvgPool2d(2), C(5, 6, 2), R, out=24), IMAGE),
    "average with padding": (
        images(C(2, 5, 3), R, nn.AvgPool2d(2, padding=1), C(5, 6, 2), R, out=54),
        IMAGE,
    ),
    "average without zeros": (
        images(
            C(2, 5, 3), R, nn.AvgPool2d(2, padding=1, count_include_pad=False),
            C(5, 6, 2), R, out=54,
        ),
        IMAGE,
    ),
    "average by another divisor": (
        images(C(2, 5, 3), R, nn.AvgPool2d(2, divisor_override=3), C(5, 6, 2), out=24),
        IMAGE,
    ),
    "ceil": (
        images(C(2, 5, 4), R, nn.AvgPool2d(2, ceil_mode=True), nn.MaxPool2d(2, 1, 1), out=80),
        IMAGE,
    ),
    "adaptive": (images(C(2, 5, 3), R, nn.AdaptiveAvgPool2d((2, None)), out=60), IMAGE),
    "depthwise": (images(C(2, 5, 1), R, C(5, 5, 3, groups=5), R, C(5, 6, 1), R, out=216), IMAGE),
    "depthwise and padded": (
        images(C(2, 5, 1), R, C(5, 5, 3, groups=5, padding=1), C(5, 6, 1), R, P, out=96),
        IMAGE,
    ),
    "groups": (images(C(2, 6, 3), R, C(6, 4, 3, groups=2), R, C(4, 6, 1), R, out=96), IMAGE),
    "one dimension": (
        images(
            nn.Conv1d(2, 5, 3), nn.BatchNorm1d(5), nn.Sigmoid(), nn.MaxPool1d(2),
            nn.Conv1d(5, 4, 2), nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(2), out=8,
        ),
        SERIES,
    ),
    "residual": (Residual, IMAGE),
    "residual, constants": (lambda: Residual(0, torch.sigmoid), IMAGE),
    "residual, dense": (ResidualMLP, (5,)),
    "views": (Viewed, (64,)),
    "constant sizes": (Constants, (1, 8, 8)),
    "LeNet-5": (lambda: LeNet5(size=16, filters=(4, 6), hidden=9, outputs=3), (256,)),
    "LeNet-300-100": (lambda: LeNet300100(inputs=16, hidden=(9, 7), outputs=3), (4, 4)),
}
# fmt: on


@torch.no_grad()
def masked(make, seed, density=0.45, dead=0.35):
    """Return a network of random numbers with random zeros, zero rows and zero columns."""
    torch.manual_seed(seed)
    net = make()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.3, 2.0)
            layer.weight.normal_().mul_(torch.rand_like(layer.weight) > 0.15)
            layer.bias.normal_()
    for name, parameter in net.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, 0.5).mul_(torch.rand_like(parameter) < density)
            parameter[torch.rand(len(parameter)) < dead] = 0.0
            parameter[:, torch.rand(parameter.shape[1]) < dead * (parameter.shape[1] > 1)] = 0.0
        elif "bn" not in name:
            parameter.normal_()
    return net.eval()


def difference(small, net, shape, dtype=torch.float64):
    """Return the largest difference of the outputs, relative to the largest output."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, *shape, generator=generator, dtype=torch.float64).to(dtype)
    with torch.no_grad():
        expected, outputs = net(x), small(x)
    assert outputs.shape == expected.shape
    return float((outputs - expected).abs().max() / expected.abs().max())
