"""Data sets as plain tensors, each file checked when it is read."""

from pyro_bnn.runtime.validation import DataError as DataError
from pyro_bnn.runtime.validation import validate as validate

from .base import Dataset as Dataset
from .base import data_folder as data_folder
from .cifar import cifar10 as cifar10
from .cifar import cifar10_jpeg as cifar10_jpeg
from .handwritten_digits import digits as digits
from .mnist_images import mnist as mnist
from .mnist_images import not_mnist as not_mnist
from .random_labels import with_random_labels as with_random_labels
from .split import hold_out as hold_out
from .uci_regression import UCI_SETS as UCI_SETS
from .uci_regression import uci as uci
