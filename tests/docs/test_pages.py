"""The code on the pages of the documentation and in the README runs."""

import re
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "docs" / "quickstart.md",
    ROOT / "docs" / "verbs.md",
    *sorted((ROOT / "docs" / "howto").glob("*.md")),
]
# the same programs, run for less time; each replacement must be found
SHORTER = {
    "README.md": {"epochs=150": "epochs=2, progress=False"},
    "quickstart.md": {
        "epochs=150": "epochs=2, progress=False",
        "epochs=500": "epochs=5, progress=False",
        "chains=4, warmup=200, draws=200": "chains=4, warmup=20, draws=20, progress=False",
    },
    "compare.md": {"epochs=200": "epochs=20", "warmup=50, draws=50": "warmup=4, draws=4"},
    "arviz.md": {"chains=4, warmup=100, draws=100": "chains=2, warmup=10, draws=10"},
    "verbs.md": {"epochs=200": "epochs=5", "warmup=200": "warmup=20, compile=False"},
}


def code_of(page):
    """Return the Python blocks of a page as one program, shortened."""
    program = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    for long, short in SHORTER.get(page.name, {}).items():
        assert long in program
        program = program.replace(long, short)
    return program


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    program = code_of(page)
    if not program:
        pytest.skip("no code on this page")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # short chains warn that they have not converged
        exec(compile(program, page.name, "exec"), {})
    if page.name == "README.md":
        assert "times fewer weights" in capsys.readouterr().out


def test_the_test_command_of_the_readme_is_the_one_that_is_checked():
    assert "pytest -n 2" in (ROOT / "README.md").read_text()
    assert "\npytest -n 2" in (ROOT / ".ci" / "run").read_text()


def local_links(page):
    """Return the targets of Markdown links that are files."""
    targets = re.findall(r"\]\(((?!http)[^)#\s]+)[^)]*\)", page.read_text())
    return sorted(set(targets))


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_the_top_pages_lead_to_files(name):
    missing = [link for link in local_links(ROOT / name) if not (ROOT / link).exists()]
    assert not missing


def test_the_readme_stays_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
