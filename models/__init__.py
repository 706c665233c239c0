"""Networks as plain modules, and beside each the same network as a Pyro model."""

from .lenet import LeNet5 as LeNet5
from .lenet import LeNet300100 as LeNet300100
from .lenet import lenet_5 as lenet_5
from .lenet import lenet_300_100 as lenet_300_100
from .mlp import MLP as MLP
from .mlp import mlp_classifier as mlp_classifier
from .mlp import mlp_regressor as mlp_regressor
from .regression import hidden_layer_regression as hidden_layer_regression
from .regression import linear_regression as linear_regression
from .vgg_like import VGG as VGG
from .vgg_like import vgg as vgg
