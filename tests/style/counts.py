"""How the code is written, in numbers: ``python tests/style/counts.py [FOLDER ...]``.

Without folders, the library is counted: ``pyro_bnn``, ``models`` and ``guides``. The definitions:

``statements``
    Nodes of kind ``ast.stmt``, docstrings excluded.
``comprehensions``
    List, set and dict comprehensions, generator expressions, and calls of ``map`` or ``filter``
    with a lambda.
``nested comprehensions``
    Comprehensions that contain another comprehension.
``conditional expressions``
    ``a if condition else b``; nested where one stands directly inside another.
``unpacked generators``
    Assignments of a generator expression to several targets, ``a, b = (f(v) for v in pair)``.
``long lines``
    Lines of more than 100 characters.
``signatures with Any``
    Functions that mention ``Any`` or ``object`` in the annotation of a parameter or of the result,
    as a fraction of all functions. Annotations that Python prescribes (``__eq__``) are excluded.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIBRARY = ("pyro_bnn", "models", "guides")
COLUMNS = 100
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass
class Counts:
    """What is counted in a file or in several."""

    statements: int = 0
    comprehensions: int = 0
    nested_comprehensions: int = 0
    conditional_expressions: int = 0
    nested_conditionals: int = 0
    unpacked_generators: int = 0
    long_lines: int = 0
    signatures: int = 0
    signatures_with_any: int = 0

    def __add__(self, other: Counts) -> Counts:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Counts(*(mine + theirs for mine, theirs in pairs))

    def per_hundred(self, name: str) -> float:
        """Return a count per 100 statements."""
        return 100 * getattr(self, name) / max(self.statements, 1)

    @property
    def share_with_any(self) -> float:
        """The fraction of signatures that mention ``Any`` or ``object``."""
        return self.signatures_with_any / max(self.signatures, 1)


def is_docstring(statement: ast.stmt) -> bool:
    """Return whether a statement is a string that stands alone."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def is_comprehension(node: ast.AST) -> bool:
    """Return whether a node loops inside an expression."""
    if isinstance(node, COMPREHENSIONS):
        return True
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return False
    has_lambda = any(isinstance(argument, ast.Lambda) for argument in node.args)
    return node.func.id in ("map", "filter") and has_lambda


def contains_comprehension(node: ast.AST) -> bool:
    """Return whether a comprehension stands somewhere inside a node."""
    return any(is_comprehension(inner) for inner in ast.walk(node) if inner is not node)


def is_nested_conditional(node: ast.IfExp) -> bool:
    """Return whether a part of a conditional expression is one itself."""
    return any(isinstance(part, ast.IfExp) for part in (node.test, node.body, node.orelse))


def unpacks_generator(node: ast.AST) -> bool:
    """Return whether an assignment spreads a generator expression over several targets."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.GeneratorExp):
        return False
    return any(isinstance(target, ast.Tuple | ast.List) for target in node.targets)


def annotations(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.expr]:
    """Yield the annotations of the parameters and of the result."""
    arguments = function.args
    everything = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    for argument in [*everything, arguments.vararg, arguments.kwarg]:
        if argument is not None and argument.annotation is not None:
            yield argument.annotation
    if function.returns is not None:
        yield function.returns


def mentions_any(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether an annotation of a function says ``Any`` or ``object``."""
    if function.name == "__eq__":
        return False
    for annotation in annotations(function):
        for node in ast.walk(annotation):
            if isinstance(node, ast.Name) and node.id in ("Any", "object"):
                return True
    return False


def count_source(source: str) -> Counts:
    """Return the counts of a piece of source code."""
    counts = Counts(long_lines=sum(len(line) > COLUMNS for line in source.splitlines()))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and not is_docstring(node):
            counts.statements += 1
        if is_comprehension(node):
            counts.comprehensions += 1
            counts.nested_comprehensions += contains_comprehension(node)
        if isinstance(node, ast.IfExp):
            counts.conditional_expressions += 1
            counts.nested_conditionals += is_nested_conditional(node)
        counts.unpacked_generators += unpacks_generator(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            counts.signatures += 1
            counts.signatures_with_any += mentions_any(node)
    return counts


def python_files(folders: Iterable[str | Path]) -> list[Path]:
    """Return the source files below these folders; links are not followed."""
    files = []
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            linked = any(parent.is_symlink() for parent in path.parents)
            if not linked:
                files.append(path)
    return files


def count_files(files: Iterable[Path]) -> Counts:
    """Return the counts of several files together."""
    total = Counts()
    for path in files:
        total = total + count_source(path.read_text(encoding="utf-8"))
    return total


def report(counts: Counts) -> str:
    """Return the counts as a table."""
    rows = [(field.name.replace("_", " "), getattr(counts, field.name)) for field in fields(counts)]
    lines = [f"{name:<28}{value:>8,}" for name, value in rows]
    for name in ("comprehensions", "conditional_expressions"):
        title = f"{name.replace('_', ' ')} / 100"
        lines.append(f"{title:<28}{counts.per_hundred(name):>8.1f}")
    lines.append(f"{'signatures with Any, %':<28}{100 * counts.share_with_any:>8.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(report(count_files(python_files(sys.argv[1:] or LIBRARY))))
