"""What is installed is whole: the wheel holds every module, and the versions agree."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyro_bnn

ROOT = Path(__file__).parents[1]
SOURCES = ["pyro_bnn", "models", "guides", "pyproject.toml", "README.md", "LICENSE"]
IMPORT_ALL = """
import importlib, pathlib, pkgutil, sys
import pyro_bnn
home = pathlib.Path(sys.argv[1])
assert home in pathlib.Path(pyro_bnn.__file__).parents, pyro_bnn.__file__
names = [info.name for info in pkgutil.walk_packages(pyro_bnn.__path__, "pyro_bnn.")]
for name in names:
    importlib.import_module(name)
print(*sorted(["pyro_bnn", *names]))
"""


def run(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def expected_modules():
    """Return the names of all modules of the checkout."""
    names = []
    for path in [
        *ROOT.glob("pyro_bnn/**/*.py"),
        *ROOT.glob("models/*.py"),
        *ROOT.glob("guides/*.py"),
    ]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == "pyro_bnn" else ("pyro_bnn", *parts)
        names.append(".".join(parts).removesuffix(".__init__"))
    return sorted(set(names))


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Build a wheel from a copy of the sources, and unpack it into an empty folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        run(["cp", "-r", "--no-dereference", str(ROOT / name), str(source)])
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--quiet"]
    run([*pip, "wheel", *options, "-w", str(folder), str(source)])
    (wheel,) = folder.glob("*.whl")
    target = folder / "site"
    run([*pip, "install", *options, "--target", str(target), str(wheel)])
    return target


def test_every_module_is_in_the_wheel_and_can_be_imported(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed), "MPLBACKEND": "Agg"}
    command = [sys.executable, "-c", IMPORT_ALL, str(installed)]
    printed = run(command, env=environment, cwd=tmp_path)
    assert printed.split() == expected_modules()


def test_the_wheel_holds_the_files_that_are_no_modules(installed):
    assert (installed / "pyro_bnn" / "py.typed").exists()
    assert (installed / "pyro_bnn" / "compression" / "pbnn" / "FORMAT.md").exists()


def test_all_places_name_one_version():
    assert pyro_bnn.__version__ in (ROOT / "README.md").read_text()
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {pyro_bnn.__version__}\n" in citation
    released = re.findall(
        r"^## (\d\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert released[0][0] == pyro_bnn.__version__
    assert f"date-released: {released[0][1]}\n" in citation
