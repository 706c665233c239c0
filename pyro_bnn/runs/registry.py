"""Build data sets, models, priors and guides from their names.

Programs use the objects directly; only runs on disk and the command line use names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypedDict, cast

import pyro.distributions as dist
import torch

from pyro_bnn import datasets, guides, models, priors
from pyro_bnn.datasets import Dataset
from pyro_bnn.network import BayesianNet
from pyro_bnn.priors import Prior
from pyro_bnn.variational.guide import Guide

from .names import DataName, GuideName, ModelName, PriorName
from .settings import Settings

__all__ = ["ModelAndGuide", "build", "read_data", "require_used_options"]


class ModelAndGuide(NamedTuple):
    """A model and a guide for it."""

    model: BayesianNet
    guide: Guide


def read_data(name: str, split: int, directory: str | None, download: bool = False) -> Dataset:
    """Return the data set of a name.

    Args:
        name: one of :class:`~pyro_bnn.runs.names.DataName`.
        split: the published split of a UCI set, or the seed of random labels.
        directory: the folder of all data sets; ``None`` for the default.
        download: fetch MNIST if it is not in the folder.

    Raises:
        ValueError: if the name is unknown.
        DataError: if a file is missing or damaged.
    """
    match DataName(name):
        case DataName.DIGITS:
            return datasets.digits()
        case DataName.MNIST:
            return datasets.mnist(directory, download=download)
        case DataName.DIGITS_RANDOM:
            return datasets.with_random_labels(datasets.digits(), seed=split)
        case DataName.MNIST_RANDOM:
            images = datasets.mnist(directory, download=download)
            return datasets.with_random_labels(images, seed=split)
        case DataName.CIFAR10:
            return datasets.cifar10(directory)
        case DataName.CIFAR10_JPEG:
            return datasets.cifar10_jpeg(directory)
        case _:
            return datasets.uci(name, split, directory)


def build(settings: Settings, data: Dataset) -> ModelAndGuide:
    """Return model and guide for the data; the network's first weights depend on the seed alone.

    Raises:
        ValueError: if a name is unknown, or if model, prior, guide and data do not fit together.
    """
    _require_matching_targets(settings, data)
    sizes = _sizes(settings, data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = _model(settings, len(data.x_train), sizes)
        return ModelAndGuide(model, _guide(settings, model))


def _require_matching_targets(settings: Settings, data: Dataset) -> None:
    """Refuse a model of classes for real targets, and the reverse."""
    is_regression = settings.model == ModelName.MLP_REGRESSION
    if is_regression and data.classes is not None:
        raise ValueError(
            f"{settings.model}: the targets of {data.name} are classes; "
            "take the model mlp, lenet-300-100 or lenet-5"
        )
    if not is_regression and data.classes is None:
        raise ValueError(
            f"{settings.model}: the targets of {data.name} are real numbers; "
            "take the model mlp-regression"
        )


# --- models ---------------------------------------------------------------------------------------


class _Sizes(TypedDict, total=False):
    """Sizes of a network; each model takes some of them."""

    inputs: int
    size: int
    channels: int
    hidden: list[int]


def _sizes(settings: Settings, data: Dataset) -> _Sizes:
    """Return the sizes of the network that fit the inputs and ``--hidden``."""
    model, shape = settings.model, data.x_train.shape[1:]
    is_image = len(shape) == 3
    if settings.hidden and model not in (ModelName.MLP, ModelName.MLP_REGRESSION):
        raise ValueError(
            f"hidden: the layers of {model} are fixed; leave it out, or take the model mlp"
        )
    if model == ModelName.VGG and not is_image:
        raise ValueError(
            f"vgg: expected images (channels, size, size), the inputs of {data.name} are "
            f"{tuple(shape)}"
        )
    if model in (ModelName.VGG, ModelName.LENET_5) and is_image:
        return {"size": shape[-1], "channels": shape[0]}
    if model == ModelName.LENET_5:
        return {"size": math.isqrt(shape.numel())}
    if settings.hidden:
        return {"inputs": shape.numel(), "hidden": _widths(settings.hidden)}
    return {"inputs": shape.numel()}


def _widths(text: str) -> list[int]:
    """Return the widths of hidden layers that ``--hidden 100,50`` lists."""
    widths = []
    for part in text.split(","):
        width = part.strip()
        if not width.isdecimal() or int(width) == 0:
            raise ValueError(
                f"hidden: expected widths above zero with commas between, as 100,50; got {text!r}"
            )
        widths.append(int(width))
    return widths


def _model(settings: Settings, num_data: int, sizes: _Sizes) -> BayesianNet:
    prior = _prior(settings)
    arguments = cast("dict[str, Any]", sizes)  # exactly those that the chosen model takes
    match ModelName(settings.model):
        case ModelName.LENET_300_100:
            return models.lenet_300_100(num_data, prior, **arguments)
        case ModelName.LENET_5:
            return models.lenet_5(num_data, prior, **arguments)
        case ModelName.VGG:
            return models.vgg(num_data, prior, **arguments)
        case ModelName.MLP:
            return models.mlp_classifier(num_data, prior, **arguments)
        case ModelName.MLP_REGRESSION:
            return models.mlp_regressor(num_data, prior, **arguments)


# --- priors and guides ----------------------------------------------------------------------------


def _prior(settings: Settings) -> Prior:
    scale = settings.prior_scale
    match PriorName(settings.prior):
        case PriorName.LOG_UNIFORM:
            return priors.LogUniform()
        case PriorName.ARD:
            return priors.AutomaticRelevance()
        case PriorName.GROUP_ARD:
            return priors.AutomaticRelevance(group=True)
        case PriorName.NORMAL:
            return priors.Normal(scale)
        case PriorName.NORMAL_JEFFREYS:
            return priors.NormalJeffreys()
        case PriorName.HORSESHOE:
            # the guide of Bayesian compression needs the half-Cauchy scales in two factors
            decomposed = settings.guide == GuideName.GROUP_HORSESHOE
            return priors.Horseshoe(scale, decomposed=decomposed)
        case PriorName.TRUNCATED_LOG_UNIFORM:
            return priors.TruncatedLogUniform()
        case PriorName.INFORMATION_BOTTLENECK:
            return priors.InformationBottleneck()
        case PriorName.GAUSSIAN_MIXTURE:
            return priors.GaussianMixture([scale, scale / 400])
        case PriorName.STUDENT_T:
            return priors.Elementwise(dist.StudentT(3.0, 0.0, _positive_scale(settings)))
        case PriorName.LAPLACE:
            return priors.Elementwise(dist.Laplace(0.0, _positive_scale(settings)))
        case PriorName.LEARNED_NORMAL:
            return priors.LearnedNormal(scale)


def _positive_scale(settings: Settings) -> float:
    if not settings.prior_scale > 0:
        raise ValueError(
            f"{settings.prior}: expected --prior-scale above zero, got {settings.prior_scale}"
        )
    return settings.prior_scale


def _guide(settings: Settings, model: BayesianNet) -> Guide:
    dropout = settings.dropout
    match GuideName(settings.guide):
        case GuideName.MEAN_FIELD:
            return guides.MeanField(model)
        case GuideName.SPARSE_VD if settings.tricks:
            return guides.SparseVariationalDropout(model)
        case GuideName.SPARSE_VD:
            return guides.SparseVariationalDropout(model, clip=None, mask=None)
        case GuideName.GAUSSIAN:
            return guides.FactorizedGaussian(model)
        case GuideName.GROUP:
            return guides.GroupNormalJeffreys(model)
        case GuideName.GROUP_HORSESHOE:
            return guides.GroupHorseshoe(model)
        case GuideName.STRUCTURED_PRUNING:
            return guides.StructuredPruning(model)
        case GuideName.BOTTLENECK:
            return guides.InformationBottleneck(model)
        case GuideName.BERNOULLI_DROPOUT:
            return guides.BernoulliDropout(model, dropout)
        case GuideName.GAUSSIAN_DROPOUT:
            # Gaussian noise with the mean and the variance of binary dropout of rate p
            return guides.GaussianDropout(model, dropout / (1 - dropout))
        case GuideName.POINT:
            return guides.PointEstimate(model)


# --- options that only some priors or guides use --------------------------------------------------


@dataclass(frozen=True)
class _Usage:
    """Which priors or guides use an option.

    Attributes:
        option: a field of ``Settings``.
        flag: the option of the command line.
        kind: the field of ``Settings`` that names the user, ``"prior"`` or ``"guide"``.
        users: the names that use the option.
    """

    option: str
    flag: str
    kind: str
    users: tuple[str, ...]


_USAGES = (
    _Usage(
        "prior_scale",
        "--prior-scale",
        "prior",
        (
            PriorName.NORMAL,
            PriorName.LEARNED_NORMAL,
            PriorName.HORSESHOE,
            PriorName.GAUSSIAN_MIXTURE,
            PriorName.STUDENT_T,
            PriorName.LAPLACE,
        ),
    ),
    _Usage(
        "dropout",
        "--dropout",
        "guide",
        (GuideName.BERNOULLI_DROPOUT, GuideName.GAUSSIAN_DROPOUT),
    ),
    _Usage("tricks", "--no-tricks", "guide", (GuideName.SPARSE_VD,)),
)


def require_used_options(settings: Settings) -> None:
    """Refuse options that were changed from their default but have no effect.

    Raises:
        ValueError: naming the option and the priors or guides that use it.
    """
    defaults = {field.name: field.default for field in fields(settings)}
    for usage in _USAGES:
        name = getattr(settings, usage.kind)
        changed = getattr(settings, usage.option) != defaults[usage.option]
        if changed and name not in usage.users:
            raise ValueError(
                f"{usage.flag}: the {usage.kind} {name} does not use it, "
                f"only {', '.join(usage.users)}; leave it out"
            )
