"""The keyword arguments of the samplers: explicit, documented alike, and checked."""

import inspect
import re

import numpy as np
import pytest

from pyro_bnn import mcmc
from tests.mcmc.runs import MODEL, X, Y, run, same

SAMPLERS = ("hmc", "nuts", "sgld", "psgld", "sghmc", "baoa")
COMMON = ("chains", "warmup", "draws", "start", "seed", "compile", "progress")
SAVED = ("thin", "folder", "resume")

pytestmark = pytest.mark.filterwarnings("ignore::pyro_bnn.mcmc.ConvergenceWarning")


def documented_arguments(sampler):
    """The description of each argument in the docstring of a sampler."""
    section = inspect.getdoc(sampler).split("Args:\n")[1].split("\n\n")[0]
    entries = re.split(r"^ {4}(\w+): ", section, flags=re.MULTILINE)
    texts = [" ".join(text.split()) for text in entries[2::2]]
    return dict(zip(entries[1::2], texts, strict=True))


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_argument_is_explicit_and_documented(name):
    parameters = inspect.signature(getattr(mcmc, name)).parameters
    assert all(p.kind is not p.VAR_KEYWORD for p in parameters.values())
    assert list(documented_arguments(getattr(mcmc, name))) == list(parameters)
    common = COMMON if name == "nuts" else COMMON + SAVED
    assert set(common) <= set(parameters)


@pytest.mark.parametrize("argument", ["model", "data", *COMMON, *SAVED, "batch_size"])
def test_an_argument_of_several_samplers_is_documented_alike(argument):
    texts = set()
    for name in SAMPLERS:
        text = documented_arguments(getattr(mcmc, name)).get(argument, "")
        if argument in ("chains", "warmup", "compile"):  # details differ after the first comma
            text = re.split("[,.;]", text)[0]
        texts.add(text)
    assert len(texts - {""}) == 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_unknown_keyword_is_a_type_error(name):
    with pytest.raises(TypeError, match=rf"^{name}\(\) got an unexpected keyword .*'chain'"):
        getattr(mcmc, name)(MODEL, (X, Y), chain=3)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    "wrong", [{"chains": 0}, {"draws": 0}, {"draws": 2.5}, {"warmup": -1}, {"seed": 0.5}]
)
def test_a_wrong_count_is_an_error_that_begins_with_the_name_of_the_sampler(name, wrong):
    ((argument, value),) = wrong.items()
    message = f"^{name}: expected {argument} to be a whole number.*got {value}"
    with pytest.raises(ValueError, match=message):
        getattr(mcmc, name)(MODEL, (X, Y), progress=False, **wrong)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("start", ["posterior", 3.0])
def test_an_unknown_start_is_an_error_that_begins_with_the_name_of_the_sampler(name, start):
    with pytest.raises(ValueError, match=f'^{name}: expected start="prior", .* got {start!r}'):
        getattr(mcmc, name)(MODEL, (X, Y), progress=False, start=start)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "nuts"])
def test_resuming_without_a_folder_and_a_thin_of_zero_are_errors(name):
    with pytest.raises(ValueError, match=rf"^{name}: resume=True .* folder=FOLDER"):
        run(name, resume=True)
    with pytest.raises(ValueError, match=f"^{name}: expected thin .* at least 1, got 0"):
        run(name, thin=0)


def test_counts_may_be_integers_of_numpy(tmp_path):
    counts = {"chains": np.int64(3), "warmup": np.int32(10), "draws": np.int64(8)}
    posterior = run("sgld", seed=np.int64(5), folder=tmp_path, **counts)
    assert same(posterior, run("sgld"))
    assert posterior.draws["weight"].shape == (3, 8, 2)
