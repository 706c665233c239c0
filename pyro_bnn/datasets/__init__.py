"""Data sets as plain tensors.

:func:`digits` needs no file and is the default of every example. The other sets are read from one
data directory: the argument ``directory``, otherwise the environment variable ``PYRO_BNN_DATA``,
otherwise ``./data``. Nothing is downloaded unless ``mnist(download=True)`` asks for it, and nothing
is ever unpickled. Every file is checked when it is read; whatever is wrong with a file or an array,
the error is a ``DataError``.
"""

from pyro_bnn.runtime.validation import DataError as DataError
from pyro_bnn.runtime.validation import validate as validate

from .base import Dataset as Dataset
from .cifar import cifar10 as cifar10
from .cifar import cifar10_jpeg as cifar10_jpeg
from .files import data_folder as data_folder
from .handwritten_digits import digits as digits
from .mnist_images import mnist as mnist
from .mnist_images import not_mnist as not_mnist
from .random_labels import with_random_labels as with_random_labels
from .split import hold_out as hold_out
from .uci_regression import UCI_SETS as UCI_SETS
from .uci_regression import uci as uci
