"""Who imports whom in the package, read from the source and without importing anything."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# The folders that hold the package, and what they are imported as.
TREES = {"prunekit": "prunekit", "kernels": "prunekit.kernels", "export": "prunekit.export"}


@dataclass(frozen=True)
class Import:
    """``importer`` imports ``target``, both names of modules; ``late`` where not at import time: in a function, or for
    types only."""

    importer: str
    target: str
    late: bool


def module_files(root: Path) -> dict[str, Path]:
    """Every module of the package by its full name; a package is the name of its ``__init__.py``."""
    found = {}
    for tree, name in TREES.items():
        for file in sorted((root / tree).rglob("*.py")):
            parts = file.relative_to(root / tree).with_suffix("").parts
            found[".".join([name, *(parts[:-1] if parts[-1] == "__init__" else parts)])] = file
    return found


def read_imports(name: str, source: str, known: Iterable[str]) -> Iterator[Import]:
    """Imports of modules of the package in ``source``, function bodies included."""
    known = set(known)
    tree = ast.parse(source)
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _for_types(node)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level < 2, f"{name} imports from more than one folder up"
            package = f"{name.rpartition('.')[0]}.{node.module}" if node.level else node.module or ""
            names = [f"{package}.{alias.name}" for alias in node.names]
        for each in names:
            # What is imported from a module is no module itself.
            target = each if each in known else each.rpartition(".")[0]
            if target in known:
                yield Import(name, target, id(node) in late)


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def all_imports(files: Mapping[str, Path]) -> list[Import]:
    return [each for name, file in files.items() for each in read_imports(name, file.read_text("utf-8"), files)]


def circles(imports: Iterable[Import]) -> list[tuple[str, ...]]:
    """Groups of modules that import each other, directly or through others (Tarjan 1972)."""
    graph: dict[str, set[str]] = {}
    for each in imports:
        if each.importer != each.target:
            graph.setdefault(each.importer, set()).add(each.target)
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[tuple[str, ...]] = []

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for target in sorted(graph.get(name, ())):
            if target not in number:
                visit(target)
                lowest[name] = min(lowest[name], lowest[target])
            elif target in stack:
                lowest[name] = min(lowest[name], number[target])
        if lowest[name] == number[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(tuple(sorted(group)))

    for name in sorted(graph):
        if name not in number:
            visit(name)
    return sorted(found)
