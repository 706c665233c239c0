"""The names of models, priors, guides and data sets in run folders and on the command line.

Only strings live here: importing this module loads neither torch nor Pyro, so that ``pyro-bnn``
can check names and list them at once. What a name builds is in :mod:`pyro_bnn.runs.registry`.
"""

from __future__ import annotations

import difflib
from enum import StrEnum
from typing import Self

__all__ = ["DataName", "GuideName", "ModelName", "Name", "OutOfDistributionName", "PriorName"]


class Name(StrEnum):
    """A name with one line that describes it; each member is a string.

    Upper and lower case are the same: ``PriorName("ARD") is PriorName.ARD``.
    """

    description: str

    def __new__(cls, name: str, description: str = "") -> Self:
        """Return the member that a line ``NAME = (name, description)`` defines."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.description = description
        return member

    @classmethod
    def kind(cls) -> str:
        """Return the word for what these names stand for, such as ``"prior"``."""
        raise NotImplementedError

    @classmethod
    def _missing_(cls, value: object) -> Self:
        """Return the member that differs in case only, or raise ``ValueError`` with a hint."""
        text = str(value).casefold()
        members = {member.casefold(): member for member in cls}
        if text in members:
            return members[text]
        nearest = difflib.get_close_matches(text, members, n=1, cutoff=0.4)
        hint = f"; did you mean {members[nearest[0]]}?" if nearest else "."
        raise ValueError(f"unknown {cls.kind()} {value!r}{hint} Expected one of {', '.join(cls)}")


class ModelName(Name):
    """Networks."""

    LENET_300_100 = (
        "lenet-300-100",
        "Two dense hidden layers of 300 and 100 units: 266,200 weights for MNIST",
    )
    LENET_5 = (
        "lenet-5",
        "LeNet-5 as in Caffe: convolutions of 20 and 50 filters, 500 hidden units, a ReLU after "
        "every layer; 430,500 weights for MNIST",
    )
    VGG = (
        "vgg",
        "Thirteen convolutions of 3 x 3 in five blocks, each followed by pooling of 2, and two "
        "dense layers; batch normalization and a ReLU after every layer but the last. "
        "14,977,728 weights for CIFAR-10",
    )
    MLP = ("mlp", "Dense layers with ReLU for classes, of the widths --hidden (default 100)")
    MLP_REGRESSION = (
        "mlp-regression",
        "Dense layers with tanh for real numbers, of the widths --hidden (default 50); "
        "learned noise",
    )

    @classmethod
    def kind(cls) -> str:
        """Return ``"model"``."""
        return "model"


class PriorName(Name):
    """Priors over the weights; s is ``--prior-scale``."""

    LOG_UNIFORM = (
        "log-uniform",
        "The scale-free prior of variational dropout, p(w) ∝ 1/|w|",
    )
    ARD = (
        "ard",
        "Gaussian weights with one precision each, fitted to the data, "
        "p(w_i) = N(w_i; 0, 1/τ_i) with τ maximizing the ELBO",
    )
    GROUP_ARD = ("group-ard", "As ard, with one precision per group")
    NORMAL = ("normal", "Gaussian weights, p(w) = N(w; 0, s²)")
    NORMAL_JEFFREYS = (
        "normal-jeffreys",
        "Group-sparse weights, w = u z, u ~ N(0, 1), p(z) ∝ 1/|z| per group",
    )
    HORSESHOE = (
        "horseshoe",
        "Horseshoe weights, w = u z t, u ~ N(0, 1), z ~ C⁺(0, 1), t ~ C⁺(0, s)",
    )
    TRUNCATED_LOG_UNIFORM = (
        "truncated-log-uniform",
        "Units under multiplicative noise between two bounds, "
        "w = θ z, p(z) ∝ 1/z for e^a ≤ z ≤ e^b",
    )
    INFORMATION_BOTTLENECK = (
        "information-bottleneck",
        "Units that carry no more information than the labels need, "
        "w = θ z, p(z) = N(0, 1/τ) with τ maximizing the ELBO",
    )
    GAUSSIAN_MIXTURE = (
        "gaussian-mixture",
        "Spike and slab: equal parts of N(0, s²) and N(0, (s/400)²)",
    )
    STUDENT_T = (
        "student-t",
        "Heavy tails: Student's t with three degrees of freedom and scale s",
    )
    LAPLACE = ("laplace", "Double exponential, p(w) ∝ exp(-|w|/s)")
    LEARNED_NORMAL = (
        "learned-normal",
        "Gaussian weights whose scale is fitted to the data, "
        "p(w) = N(w; 0, σ²) with σ maximizing the ELBO",
    )

    @classmethod
    def kind(cls) -> str:
        """Return ``"prior"``."""
        return "prior"


class GuideName(Name):
    """Variational families."""

    MEAN_FIELD = (
        "mean-field",
        "The fully factorized posterior: a Gaussian for every real site, a log-normal for every "
        "positive one",
    )
    SPARSE_VD = (
        "sparse-vd",
        "Gaussian noise of its own for every weight, to be used under the log-uniform prior",
    )
    GAUSSIAN = ("gaussian", "An independent Gaussian for every weight")
    GROUP = (
        "group",
        "The posterior of Bayesian compression under the group normal-Jeffreys prior (BC-GNJ)",
    )
    GROUP_HORSESHOE = (
        "group-horseshoe",
        "The posterior of Bayesian compression under the group horseshoe prior (BC-GHS)",
    )
    STRUCTURED_PRUNING = (
        "structured-pruning",
        "The posterior of structured Bayesian pruning: noise on units, points for weights",
    )
    BOTTLENECK = (
        "bottleneck",
        "The posterior of the variational information bottleneck (VIBNet): noise on units, "
        "points for weights",
    )
    BERNOULLI_DROPOUT = (
        "bernoulli-dropout",
        "Binary dropout: every input unit of a layer is dropped with probability p, all its "
        "weights together",
    )
    GAUSSIAN_DROPOUT = (
        "gaussian-dropout",
        "Multiplicative Gaussian noise, q(w) = N(w; θ, αθ²), under the log-uniform prior",
    )
    POINT = (
        "point",
        "A point mass at every site: the maximum a posteriori estimate, q(w) = δ(w - θ)",
    )

    @classmethod
    def kind(cls) -> str:
        """Return ``"guide"``."""
        return "guide"


_UCI = "UCI regression, --split 0 to 19 of the published ones, from DIR/uci"


class DataName(Name):
    """Data sets."""

    DIGITS = (
        "digits",
        "The handwritten digits that ship with scikit-learn, in a stratified 80/20 split fixed by "
        "seed",
    )
    MNIST = (
        "mnist",
        "MNIST, 60,000 training and 10,000 test images of 28x28, from DIR/MNIST/raw",
    )
    DIGITS_RANDOM = (
        "digits-random",
        "digits with random training labels, which --split seeds",
    )
    MNIST_RANDOM = (
        "mnist-random",
        "mnist with random training labels, which --split seeds",
    )
    CIFAR10 = (
        "cifar10",
        "CIFAR-10, 50,000 training and 10,000 test images of 3 x 32 x 32, "
        "from DIR/cifar-10-batches-bin",
    )
    CIFAR10_JPEG = (
        "cifar10-jpeg",
        "CIFAR-10 recompressed with JPEG of quality 75, from DIR/cifar10-jpeg.npz",
    )
    BOSTON_HOUSING = ("bostonHousing", _UCI)
    CONCRETE = ("concrete", _UCI)
    ENERGY = ("energy", _UCI)
    KIN8NM = ("kin8nm", _UCI)
    NAVAL_PROPULSION_PLANT = ("naval-propulsion-plant", _UCI)
    POWER_PLANT = ("power-plant", _UCI)

    @classmethod
    def kind(cls) -> str:
        """Return ``"data set"``."""
        return "data set"


class OutOfDistributionName(Name):
    """Data sets that a network was not trained on."""

    NOT_MNIST = ("notmnist", "Letters from A to J in the format of MNIST, from DIR/notMNIST/raw")

    @classmethod
    def kind(cls) -> str:
        """Return ``"out-of-distribution set"``."""
        return "out-of-distribution set"
