"""The package as a whole: directions of imports, light imports, documented names."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import pyro_bnn

ROOT = Path(pyro_bnn.__file__).parent
LIGHT = (
    "torchvision",
    "torchmetrics",
    "arviz",
    "matplotlib",
    "sklearn",
    "onnx",
    "onnxruntime",
    "typer",
    "pandas",
    "networkx",
)
# Imports go from a step to the steps before it. Packages on one step do not import each other.
STEPS = [
    ("runtime", "distributions"),
    ("priors", "datasets"),
    ("variational",),
    ("likelihoods",),
    ("network",),
    ("posterior", "models"),
    ("guides", "metrics"),
    ("training", "mcmc"),
    ("diagnostics", "compression"),
    ("plotting",),
    ("runs",),
    ("reproduction",),
    ("cli",),
]


def files():
    """Return the source files of the package, the top one aside."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        if path != ROOT / "__init__.py":
            found.append(path)
    return [
        *found,
        *sorted((ROOT / "models").glob("*.py")),
        *sorted((ROOT / "guides").glob("*.py")),
    ]


FILES = sorted(set(files()))


def module_of(path):
    parts = ["pyro_bnn", *path.relative_to(ROOT).with_suffix("").parts]
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def imports(path):
    """Return the absolute names of what a file imports, anywhere in it."""
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


def is_within(name, package):
    return name == package or name.startswith(f"{package}.")


def package_of(name):
    """Return the package of a module: "training" for "pyro_bnn.training.loop"."""
    parts = name.split(".")
    return parts[1] if parts[0] == "pyro_bnn" and len(parts) > 1 else None


def test_relative_absolute_and_local_imports_are_all_seen():
    run = imports(ROOT / "training" / "training_run.py")
    assert {"pyro_bnn.posterior.Posterior", "pyro_bnn.training.state", "torch.Tensor"} <= run
    pruning = imports(ROOT / "compression" / "pruning" / "posterior_pruning.py")
    assert any(is_within(name, "pyro_bnn.network") for name in pruning)
    digits = imports(ROOT / "datasets" / "handwritten_digits.py")
    assert any(is_within(name, "sklearn") for name in digits)


def test_every_part_of_the_package_stands_on_one_step():
    listed = [part for step in STEPS for part in step]
    there = {package_of(module_of(path)) for path in FILES}
    assert sorted(listed) == sorted(there)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_down_the_steps(path):
    own = package_of(module_of(path))
    below = set()
    for step in STEPS:
        if own in step:
            break
        below |= set(step)
    names = imports(path)
    reached = {package_of(name) for name in names} - {None, own}
    # "from pyro_bnn import priors" names a package, "from pyro_bnn import fit" a thing of the top
    assert reached <= below
    assert not {name for name in names if name.split(".")[0] in ("models", "guides")}


def test_no_module_imports_itself_through_others():
    modules = {module_of(path): path for path in FILES}
    graph = {}
    for name, path in modules.items():
        needed = {imported for imported in imports(path) if imported in modules}
        # a package's own __init__ gathers its modules; they do not import it back
        graph[name] = {other for other in needed if not is_within(name, other)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_the_import_is_light():
    code = f"import sys, pyro_bnn; print([name for name in {LIGHT} if name in sys.modules])"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", ["models", "guides"])
def test_models_and_guides_are_links_to_the_top_folders(name):
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
def test_public_names_are_documented(name):
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
            documented = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
            assert documented, attribute
        if inspect.isclass(value):
            for method, function in vars(value).items():
                own = inspect.isfunction(function)
                own = own and function.__qualname__ == f"{attribute}.{method}"
                if own and not method.startswith("_"):
                    assert function.__doc__, f"{attribute}.{method}"


@pytest.mark.parametrize("name", [n for n in modules() if not n.startswith("pyro_bnn.cli.")])
def test_no_module_bears_the_name_of_what_it_exports(name):
    parent, _, last = name.rpartition(".")
    value = getattr(importlib.import_module(parent), last, None)
    assert value is None or inspect.ismodule(value)
    assert last not in getattr(importlib.import_module(name), "__all__", ())


def test_the_names_of_the_contract_are_there():
    names = (
        "BayesianNet ELBO Posterior compare compression fit likelihoods local_reparameterization"
    )
    names += " mcmc priors to_arviz"
    assert not [name for name in names.split() if not hasattr(pyro_bnn, name)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_module_is_read_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 520
