"""Networks of every kind that becomes Bayesian, and the plain network as the reference."""

import copy

import pytest
import torch
from torch import nn

from pyro_bnn import BayesianNet, likelihoods, priors


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
