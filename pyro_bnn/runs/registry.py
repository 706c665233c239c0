"""The names of the command line: what each of them is, and what it builds.

Models, priors, guides and data sets have names here and nowhere else; a program imports the things themselves.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_bnn.datasets import Dataset
    from pyro_bnn.network import BayesianNet

    from .settings import Settings

__all__ = [
    "build",
    "data_by_name",
    "first_sentence",
    "guides_by_name",
    "known",
    "models_by_name",
    "priors_by_name",
    "require_read",
]

# Each of the four answers with {name: (what describes it, an object with a docstring or a sentence; what builds it)}.


def models_by_name() -> dict[str, tuple[Any, Callable[..., BayesianNet]]]:
    """Return the networks; each is built from the number of examples, a prior and its sizes."""
    from pyro_bnn import models

    dense = "Dense layers with ReLU for classes, of the widths --hidden (default 100)"
    regression = "Dense layers with tanh for real numbers, of the widths --hidden (default 50); learned noise"
    return {
        "lenet-300-100": (models.LeNet300100, models.lenet_300_100),
        "lenet-5": (models.LeNet5, models.lenet_5),
        "vgg": (models.VGG, models.vgg),
        "mlp": (dense, models.mlp_classifier),
        "mlp-regression": (regression, models.mlp_regressor),
    }


def priors_by_name() -> dict[str, tuple[Any, Callable[[Settings], Any]]]:
    """Return the priors over the weights; s is ``--prior-scale``."""
    import pyro.distributions as dist

    from pyro_bnn import priors

    def horseshoe(settings: Settings) -> Any:
        return priors.Horseshoe(
            settings.prior_scale, decomposed=settings.guide == "group-horseshoe"
        )

    def spike_and_slab(settings: Settings) -> Any:
        return priors.GaussianMixture([settings.prior_scale, settings.prior_scale / 400])

    def student_t(settings: Settings) -> Any:
        return priors.Elementwise(dist.StudentT(3.0, 0.0, _positive_scale(settings)))

    def laplace(settings: Settings) -> Any:
        return priors.Elementwise(dist.Laplace(0.0, _positive_scale(settings)))

    return {
        "log-uniform": (priors.LogUniform, lambda settings: priors.LogUniform()),
        "ard": (priors.AutomaticRelevance, lambda settings: priors.AutomaticRelevance()),
        "group-ard": (
            "As ard, with one precision per group",
            lambda settings: priors.AutomaticRelevance(group=True),
        ),
        "normal": (priors.Normal, lambda settings: priors.Normal(settings.prior_scale)),
        "normal-jeffreys": (priors.NormalJeffreys, lambda settings: priors.NormalJeffreys()),
        "horseshoe": (priors.Horseshoe, horseshoe),
        "truncated-log-uniform": (
            priors.TruncatedLogUniform,
            lambda settings: priors.TruncatedLogUniform(),
        ),
        "information-bottleneck": (
            priors.InformationBottleneck,
            lambda settings: priors.InformationBottleneck(),
        ),
        "gaussian-mixture": (
            "Spike and slab: equal parts of N(0, s²) and N(0, (s/400)²)",
            spike_and_slab,
        ),
        "student-t": (
            "Heavy tails: Student's t with three degrees of freedom and scale s",
            student_t,
        ),
        "laplace": ("Double exponential, p(w) ∝ exp(-|w|/s)", laplace),
        "learned-normal": (
            priors.LearnedNormal,
            lambda settings: priors.LearnedNormal(settings.prior_scale),
        ),
    }


def guides_by_name() -> dict[str, tuple[Any, Callable[[BayesianNet, Settings], Any]]]:
    """Return the variational families."""
    from pyro_bnn import guides

    def sparse(model: BayesianNet, settings: Settings) -> Any:
        if settings.tricks:
            return guides.SparseVariationalDropout(model)
        return guides.SparseVariationalDropout(model, clip=None, mask=None)

    def gaussian_dropout(model: BayesianNet, settings: Settings) -> Any:
        # the Gaussian noise that has the mean and the variance of binary dropout of rate p
        return guides.GaussianDropout(model, settings.dropout / (1 - settings.dropout))

    return {
        "mean-field": (guides.MeanField, lambda model, settings: guides.MeanField(model)),
        "sparse-vd": (guides.SparseVariationalDropout, sparse),
        "gaussian": (
            guides.FactorizedGaussian,
            lambda model, settings: guides.FactorizedGaussian(model),
        ),
        "group": (
            guides.GroupNormalJeffreys,
            lambda model, settings: guides.GroupNormalJeffreys(model),
        ),
        "group-horseshoe": (
            guides.GroupHorseshoe,
            lambda model, settings: guides.GroupHorseshoe(model),
        ),
        "structured-pruning": (
            guides.StructuredPruning,
            lambda model, settings: guides.StructuredPruning(model),
        ),
        "bottleneck": (
            guides.InformationBottleneck,
            lambda model, settings: guides.InformationBottleneck(model),
        ),
        "bernoulli-dropout": (
            guides.BernoulliDropout,
            lambda model, s: guides.BernoulliDropout(model, s.dropout),
        ),
        "gaussian-dropout": (guides.GaussianDropout, gaussian_dropout),
        "point": (guides.PointEstimate, lambda model, settings: guides.PointEstimate(model)),
    }


def data_by_name() -> dict[str, tuple[Any, Callable[[int, str | None, bool], Dataset]]]:
    """Return the data sets; each is read from a split number, a folder and whether to download."""
    from pyro_bnn import datasets
    from pyro_bnn.datasets import with_random_labels

    def randomly(split: int, dataset: Dataset) -> Dataset:
        return with_random_labels(dataset, seed=split)

    def regression(name: str) -> Callable[[int, str | None, bool], Dataset]:
        return lambda split, folder, download: datasets.uci(name, split, folder)

    memorised = "{} with random training labels, which --split seeds"
    described = "UCI regression, --split 0 to 19 of the published ones, from DIR/uci"
    return {
        "digits": (datasets.digits, lambda split, folder, download: datasets.digits()),
        "mnist": (
            datasets.mnist,
            lambda split, folder, download: datasets.mnist(folder, download=download),
        ),
        "digits-random": (
            memorised.format("digits"),
            lambda split, folder, download: randomly(split, datasets.digits()),
        ),
        "mnist-random": (
            memorised.format("mnist"),
            lambda split, folder, download: randomly(
                split, datasets.mnist(folder, download=download)
            ),
        ),
        "cifar10": (datasets.cifar10, lambda split, folder, download: datasets.cifar10(folder)),
        "cifar10-jpeg": (
            datasets.cifar10_jpeg,
            lambda split, folder, download: datasets.cifar10_jpeg(folder),
        ),
        **{name: (described, regression(name)) for name in datasets.UCI_SETS},
    }


def _positive_scale(settings: Settings) -> float:
    if not settings.prior_scale > 0:
        raise ValueError(
            f"{settings.prior}: expected --prior-scale above zero, got {settings.prior_scale}"
        )
    return settings.prior_scale


def known(kind: str, name: str, names: Iterable[str]) -> str:
    """Return the name as it is spelt here.

    Raises:
        ValueError: there is none; the message says which there are, and the nearest.
    """
    folded = {there.casefold(): there for there in names}
    if name.casefold() in folded:
        return folded[name.casefold()]
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.4)
    hint = f"; did you mean {folded[near[0]]}?" if near else "."
    raise ValueError(f"there is no {kind} {name!r}{hint} There are {', '.join(folded.values())}")


def build(settings: Settings, data: Dataset) -> tuple[BayesianNet, Any]:
    """Return model and guide for the data; the network's first weights depend on the seed alone.

    Raises:
        ValueError: parts that do not fit together.
    """
    import torch

    real = data.classes is None
    if (settings.model == "mlp-regression") != real:
        kind, others = (
            ("real numbers", "mlp-regression")
            if real
            else ("classes", "mlp, lenet-300-100 or lenet-5")
        )
        raise ValueError(
            f"{settings.model}: the targets of {data.name} are {kind}; take the model {others}"
        )
    if settings.hidden and not settings.model.startswith("mlp"):
        raise ValueError(
            f"hidden: the layers of {settings.model} are fixed; leave it out, or take the model mlp"
        )
    sizes = _sizes(settings.model, data)
    if settings.hidden:
        sizes["hidden"] = _widths(settings.hidden)
    _, make_model = models_by_name()[settings.model]
    _, make_prior = priors_by_name()[settings.prior]
    _, make_guide = guides_by_name()[settings.guide]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = make_model(len(data.x_train), prior=make_prior(settings), **sizes)
        return model, make_guide(model, settings)


def _sizes(model: str, data: Dataset) -> dict[str, Any]:
    """Return the sizes of the network that fit the inputs."""
    shape = data.x_train.shape[1:]
    if model == "vgg":
        if len(shape) != 3:
            raise ValueError(
                f"vgg: expected images (channels, size, size), the inputs of {data.name} are {tuple(shape)}"
            )
        return {"size": shape[-1], "channels": shape[0]}
    if model == "lenet-5" and len(shape) == 3:
        return {"size": shape[-1], "channels": shape[0]}
    return {"size": math.isqrt(shape.numel())} if model == "lenet-5" else {"inputs": shape.numel()}


def _widths(text: str) -> list[int]:
    widths = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if not all(widths):
        raise ValueError(
            f"hidden: expected widths above zero with commas between, as 100,50; got {text!r}"
        )
    return widths


# options that only some priors or guides read: for each which of the two, and which of them
_READ_BY = {
    "prior_scale": (
        "prior",
        ("normal", "learned-normal", "horseshoe", "gaussian-mixture", "student-t", "laplace"),
    ),
    "dropout": ("guide", ("bernoulli-dropout", "gaussian-dropout")),
    "tricks": ("guide", ("sparse-vd",)),
}


def require_read(settings: Settings) -> None:
    """Refuse options that were set but would change nothing.

    Raises:
        ValueError: naming the option, and what reads it.
    """
    for option, (kind, readers) in _READ_BY.items():
        chosen, value = getattr(settings, kind), getattr(settings, option)
        if chosen not in readers and value != type(settings).__dataclass_fields__[option].default:
            flag = "no-tricks" if option == "tricks" else option.replace("_", "-")
            raise ValueError(
                f"--{flag}: the {kind} {chosen} does not read it, only {', '.join(readers)}; leave it out"
            )


_LETTERS = {
    r"\le": "≤",
    r"\mathcal{N}": "N",
    r"\tilde w": "u",
    r"\sim": "~",
    r"\propto": "∝",
    r"\mu": "μ",
    r"\sigma": "σ",
    r"\tau": "τ",
    r"\alpha": "α",
    r"\theta": "θ",
    r"\delta": "δ",
    r"_{\cdot i}": "",
    r"\,": " ",
    "^2": "²",
    "^+": "⁺",
}


def first_sentence(documented: Any) -> str:
    """Return the first sentence of a docstring, its mathematics in plain letters."""
    text = " ".join((documented.__doc__ or "").split("\n\n")[0].split())
    for latex, letter in _LETTERS.items():
        text = text.replace(latex, letter)
    text = re.sub(r":\w+:`([^`]*)`|`(\w+)`", r"\1\2", text).removeprefix("Return ")
    return text.rstrip(".")
