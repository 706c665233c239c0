"""How the documentation is built: ``sphinx-build -W docs docs/_build/html``.

Nothing is fetched from the network, neither by the build nor by the pages: MathJax comes with an
extension, and the addresses of other projects' documentation lie in ``docs/inventories``.
"""

from __future__ import annotations

import ast
import html
import importlib
import sys
import zlib
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import pyro_bnn

project = "PyroBNN"
author = "The PyroBNN developers"
copyright = author
version = release = pyro_bnn.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build", "inventories", "README.md", "notebooks/*.py"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = f"PyroBNN {release}"
html_static_path = ["_static"]
html_css_files = ["pyro_bnn.css"]
html_theme_options = {"navigation_with_keys": True}

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the committed notebooks hold their outputs
nb_ipywidgets_js: dict[str, Any] = {}  # no page shows a widget, so no page loads their scripts

autosummary_generate = True
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
# a name is documented where it is defined, not where it is imported
autodoc_default_options = {"members": True, "ignore-module-all": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # fields are documented once, in the docstring of their class
always_use_bars_union = True
suppress_warnings = ["ref.python"]  # the type bytes, beside attributes of that name
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

# --- addresses of other documentation ---------------------------------------------------------

PROJECTS = {
    "python": "https://docs.python.org/3/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "pyro": "https://docs.pyro.ai/en/stable/",
    "matplotlib": "https://matplotlib.org/stable/",
}


def write_inventory(project: str) -> str:
    """Turn ``inventories/PROJECT.txt`` into a file for intersphinx, and return its path."""
    listed = (HERE / "inventories" / f"{project}.txt").read_text(encoding="utf-8")
    lines = []
    for line in listed.splitlines():
        kind, name, address = line.split()
        lines.append(f"{name} py:{kind} 1 {address} -\n")
    head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n"
    head += "# The remainder of this file is compressed using zlib.\n"
    path = HERE / "_build" / f"{project}.inv"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(head.encode() + zlib.compress("".join(lines).encode()))
    return str(path)


intersphinx_mapping = {
    project: (address, write_inventory(project)) for project, address in PROJECTS.items()
}


# --- names of the package ---------------------------------------------------------------------


def home_of(name: str) -> str | None:
    """Return where a public name is defined: "pyro_bnn.training.fitting.fit" for "pyro_bnn.fit"."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            thing: Any = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            thing = getattr(thing, part, None)
        module = getattr(thing, "__module__", None)
        qualified = getattr(thing, "__qualname__", None)
        return f"{module}.{qualified}" if module and qualified else None
    return None


def resolve_public_name(
    app: Sphinx, env: Any, node: Any, content: nodes.TextElement
) -> nodes.Node | None:
    """Link a name such as ``pyro_bnn.fit`` to the page of the module that defines it."""
    target = node.get("reftarget", "")
    home = home_of(target) if target.startswith("pyro_bnn.") else None
    if home is None or home == target:
        return None
    domain = env.domains["py"]
    kind, document = node.get("reftype"), node.get("refdoc", "index")
    return domain.resolve_xref(env, document, app.builder, kind, home, node, content)


# --- pages of modules that are no more ----------------------------------------------------------


def remove_stale_pages() -> None:
    """Remove the generated pages of modules that were renamed or removed since the last build."""
    for page in (HERE / "api" / "generated").glob("*.rst"):
        try:
            importlib.import_module(page.stem)
        except ImportError:
            page.unlink()


remove_stale_pages()


# --- the command line -------------------------------------------------------------------------


def write_commands(app: Sphinx) -> None:
    """Write the page of the command line from what ``--help`` prints."""
    from typer.main import get_command
    from typer.testing import CliRunner

    from pyro_bnn.cli.entry import app as program

    runner = CliRunner()
    wide = {"COLUMNS": "92", "TERM": "dumb", "NO_COLOR": "1"}
    sections = []
    for command in ["", *sorted(get_command(program).commands)]:  # type: ignore[attr-defined]
        words = [command, "--help"] if command else ["--help"]
        printed = runner.invoke(program, words, prog_name="pyro-bnn", env=wide).output
        title = f"pyro-bnn {command}".strip()
        sections.append(f"## `{title}`\n\n```text\n{printed.strip()}\n```\n")
    introduction = (
        "# The command line\n\nWhat `pyro-bnn --help` and `--help` of each command print.\n"
    )
    page = introduction + "\n" + "\n".join(sections)
    target = HERE / "commands.md"
    if not target.exists() or target.read_text(encoding="utf-8") != page:
        target.write_text(page, encoding="utf-8")


# --- the picture of the house -----------------------------------------------------------------


def steps() -> list[tuple[str, ...]]:
    """Return the steps of the package, lowest first, as the test of the imports lists them."""
    test = ast.parse((HERE.parent / "tests" / "test_package.py").read_text(encoding="utf-8"))
    for statement in test.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "STEPS":
            return list(ast.literal_eval(statement.value))
    raise LookupError("tests/test_package.py: expected a list STEPS")


def write_house(app: Sphinx) -> None:
    """Draw the steps: a row for each, with the first sentence of each package's docstring."""
    rows = []
    for step in reversed(steps()):
        boxes = []
        for name in step:
            module = importlib.import_module(f"pyro_bnn.{name}")
            sentence = " ".join((module.__doc__ or "").split("\n\n")[0].split())
            sentence = html.escape(sentence.replace("``", ""))
            title = f"<b>{name}</b>"
            if name != "cli":
                title = f'<a href="api/generated/pyro_bnn.{name}.html">{title}</a>'
            boxes.append(f"<div>{title}<br>{sentence}</div>")
        rows.append(f'<div class="step">{"".join(boxes)}</div>')
    picture = '<div class="house">' + "\n".join(rows) + "</div>\n"
    (HERE / "_build" / "house.html").write_text(picture, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("builder-inited", write_commands)
    app.connect("builder-inited", write_house)
    app.connect("missing-reference", resolve_public_name)
