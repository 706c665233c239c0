"""The package as a whole: what imports what, what is light, what is documented."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import pyro_bnn

ROOT = Path(pyro_bnn.__file__).parent
LIGHT = ("torchvision", "torchmetrics", "arviz", "matplotlib", "sklearn", "onnx", "onnxruntime", "typer", "pandas")
# the program for the command line: it may know models and guides
FREE = {
    *("cli", "cli_app", "cli_compress", "cli_evaluate", "cli_fit", "cli_names", "cli_reproduce"),
    *("runs", "demo", "comparison_demo", "compression_run", "recipes", "reproduction", "published"),
}


def files(folder):
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def core():
    """Files of the library itself."""
    return [path for path in files(ROOT) if not {"models", "guides"} & set(path.relative_to(ROOT).parts)]


def imports(path):
    """Return absolute names of the modules that a file imports, anywhere in it."""
    package = ["pyro_bnn", *path.relative_to(ROOT).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def below(name, parent):
    return name == parent or name.startswith(f"{parent}.")


def test_imports_are_seen():
    """The checks below rest on this: relative, absolute, and inside functions."""
    assert {"pyro_bnn.posterior.Posterior", "torch.nn"} <= imports(ROOT / "training.py")
    assert any(below(name, "pyro_bnn.network") for name in imports(ROOT / "compression" / "pruning.py"))
    assert any(below(name, "sklearn") for name in imports(ROOT / "data.py"))


@pytest.mark.parametrize("path", core(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_library_knows_no_particular_model_and_no_particular_guide(path):
    if path.relative_to(ROOT).parts[0].removesuffix(".py") in FREE:
        pytest.skip("part of the program for the command line")
    wrong = {name for name in imports(path) if below(name, "pyro_bnn.models") or below(name, "pyro_bnn.guides")}
    assert not wrong
    assert not {name for name in imports(path) if any(below(name, f"pyro_bnn.{part}") for part in FREE)}


@pytest.mark.parametrize("folder", ["models", "guides"])
def test_models_and_guides_know_only_the_library(folder):
    other = {"models": "guides", "guides": "models"}[folder]
    for path in files(ROOT / folder):
        names = imports(path)
        assert not {name for name in names if below(name, f"pyro_bnn.{other}")}, path
        assert not {name for name in names if any(below(name, f"pyro_bnn.{part}") for part in FREE)}, path
        assert not {name for name in names if name.split(".")[0] in ("models", "guides")}, path


def test_the_import_is_light():
    code = f"import sys, pyro_bnn; print([name for name in {LIGHT} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", ["models", "guides"])
def test_the_links_are_there_and_lead_to_the_top(name):
    if not (ROOT.parent / "pyproject.toml").exists():
        pytest.skip("installed, not a checkout")
    link = ROOT / name
    assert link.is_symlink()
    assert link.readlink().as_posix() == f"../{name}"
    assert link.resolve() == ROOT.parent / name
    module = importlib.import_module(f"pyro_bnn.{name}")
    assert Path(module.__file__).resolve() == ROOT.parent / name / "__init__.py"


def modules():
    return [info.name for info in pkgutil.walk_packages([str(ROOT)], "pyro_bnn.")]


@pytest.mark.parametrize("name", modules())
def test_what_is_public_is_documented(name):
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"needs {error.name}")
    assert module.__doc__
    assert all(hasattr(module, public) for public in getattr(module, "__all__", ()))
    for attribute, value in vars(module).items():
        if attribute.startswith("_") or getattr(value, "__module__", None) != name:
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            assert value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__, attribute
        if inspect.isclass(value):
            for method, function in vars(value).items():
                own = inspect.isfunction(function) and function.__qualname__ == f"{attribute}.{method}"
                if own and not method.startswith("_"):
                    assert function.__doc__, f"{attribute}.{method}"


@pytest.mark.parametrize("name", modules())
def test_no_module_bears_the_name_of_what_it_exports(name):
    parent, _, last = name.rpartition(".")
    package = importlib.import_module(parent)
    value = getattr(package, last, None)
    assert value is None or inspect.ismodule(value)


def test_the_names_of_the_contract_are_there():
    names = "BayesianNet ELBO Posterior compression fit likelihoods local_reparameterization priors"
    assert not [name for name in names.split() if not hasattr(pyro_bnn, name)]


PAGES = [*files(ROOT / "models"), *files(ROOT / "guides"), ROOT / "training.py"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pages_stay_pages(path):
    """These are read from top to bottom: none is longer than 400 lines."""
    assert len(path.read_text().splitlines()) <= 400


def test_the_pages_were_found():
    assert len(PAGES) > 10
