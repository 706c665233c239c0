"""Check the built pages: ``python docs/check_site.py docs/_build/html``.

Every link to a page, an anchor, a picture or a script of the site must have its target, and no page
may load anything from another host. Links that a reader clicks to leave the site are not followed.
Every public function and class of the package must have its place in the API reference.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyro_bnn


class Page(HTMLParser):
    """The links, the loaded files and the anchors of one page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Note what a tag refers to and what it names."""
        values = dict(attributes)
        for key in ("id", "name"):
            if values.get(key):
                self.anchors.add(str(values[key]))
        if tag == "a" and values.get("href"):
            self.links.append(str(values["href"]))
        if tag == "link" and values.get("rel") in ("stylesheet", "preload", "shortcut icon"):
            self.loaded.append(str(values.get("href")))
        if tag in ("script", "img", "iframe", "video", "source") and values.get("src"):
            self.loaded.append(str(values["src"]))


def read_pages(site: Path) -> dict[Path, Page]:
    """Return every page of the site, parsed."""
    pages = {}
    for path in sorted(site.rglob("*.html")):
        if "_static" in path.relative_to(site).parts:
            continue
        page = Page()
        page.feed(path.read_text(encoding="utf-8"))
        pages[path.resolve()] = page
    return pages


def has_anchor(page: Page | None, fragment: str) -> bool:
    """Return whether a page has this anchor; files that are no pages are not looked into."""
    return page is None or unquote(fragment) in page.anchors


def problems_of(path: Path, page: Page, pages: dict[Path, Page]) -> list[str]:
    """Return what is wrong with the links of one page."""
    problems = []
    for address in page.loaded:
        if urlsplit(address).netloc:
            problems.append(f"loads {address} from another host")
    for address in [*page.links, *page.loaded]:
        parts = urlsplit(address)
        if parts.scheme or parts.netloc:
            continue
        target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
        if not target.exists():
            problems.append(f"{address}: no such file")
        elif parts.fragment and not has_anchor(pages.get(target), parts.fragment):
            problems.append(f"{address}: no such anchor")
    return problems


def documented_names(site: Path) -> set[str]:
    """Return the names that the site's inventory lists."""
    content = (site / "objects.inv").read_bytes()
    compressed = content.split(b"\n", 4)[4]  # four lines of comments stand before it
    lines = zlib.decompress(compressed).decode().splitlines()
    return {line.split(" ")[0] for line in lines}


def public_names() -> set[str]:
    """Return where each public function and class of the package is defined."""
    names = set()
    for info in pkgutil.walk_packages(pyro_bnn.__path__, "pyro_bnn."):
        if info.name.startswith("pyro_bnn.cli"):
            continue  # the commands have a page of their own
        module = importlib.import_module(info.name)
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                names.add(f"{thing.__module__}.{thing.__qualname__}")
    return {name for name in names if name.startswith("pyro_bnn.")}


def main(site: Path) -> int:
    """Print all problems and return how many there are."""
    pages = read_pages(site)
    if not pages:
        print(f"{site}: no pages; build them first: sphinx-build -W docs {site}")
        return 1
    count = 0
    for path, page in pages.items():
        for problem in problems_of(path, page, pages):
            print(f"{path.relative_to(site.resolve())}: {problem}")
            count += 1
    missing = sorted(public_names() - documented_names(site))
    for name in missing:
        print(f"{name}: not in the API reference")
    print(f"{len(pages)} pages, {count} broken links, {len(missing)} undocumented names")
    return count + len(missing)


if __name__ == "__main__":
    sys.exit(min(main(Path(sys.argv[1])), 1))
