"""bench.py for one target, in one file: its parts are modules of prunekit, whose text is joined here."""

from __future__ import annotations

import ast
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

SCRIPT = "bench.py"
_CORE = "prunekit.export.edge.core"
_RUNTIMES = "prunekit.export.edge.runtimes"
_HEAD = '''"""Times the model in this folder in the runtime that it was exported for ({target}).

    python bench.py --help

Written by prunekit, of which it needs nothing: that runtime, numpy and the standard library are enough. Apache-2.0.
"""

from __future__ import annotations

{imports}
'''
_RUNTIME = '''def runtime() -> tuple[Any, Sequence[str]]:
    """Imports the runtime, which need not be there to say --help. Returns what runs the export, and the packages whose
    versions count."""

{own}

    return Model, PACKAGES


if __name__ == "__main__":
    sys.exit(main(runtime, Path(__file__).resolve().parent))
'''


def bench_script(target: str) -> str | None:
    """The program that times an export for ``target`` with its runtime, numpy and the standard library alone. None for
    a target that has none: TensorRT's own trtexec times its engines."""
    module = f"{_RUNTIMES}.{target.replace('-', '_')}"
    if find_spec(module) is None:
        return None
    imports: dict[str, set[str]] = {}
    common = _parts(_CORE, imports, set(), hoisted=(*sys.stdlib_module_names, "numpy"))
    own = _parts(module, imports, set(), hoisted=tuple(sys.stdlib_module_names))
    return "\n\n".join(
        (
            _HEAD.format(target=target, imports="\n".join(_ordered(imports))),
            "\n\n\n".join(common) + "\n",
            _RUNTIME.format(own=textwrap.indent("\n\n".join(own), "    ")),
        )
    )


def _parts(module: str, imports: dict[str, set[str]], seen: set[str], hoisted: tuple[str, ...]) -> list[str]:
    """The text of ``module`` behind that of the modules of prunekit that it imports, each once. Imports of ``hoisted``
    packages go to ``imports``; others stay where they are."""
    if module in seen:
        return []
    seen.add(module)
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    text = Path(spec.origin).read_text(encoding="utf-8")
    lines = text.splitlines()
    made: list[str] = []
    kept: list[str] = []
    end = 0
    for place, node in enumerate(ast.parse(text).body):
        # With the comments and blank lines in front of it.
        stretch, end = lines[end : node.end_lineno], node.end_lineno or end
        is_docstring = place == 0 and isinstance(node, ast.Expr)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            home = (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
            top = home.partition(".")[0]
            if top == "prunekit":
                made += _parts(home, imports, seen, hoisted)
            elif top in hoisted:
                _note(node, imports)
            else:
                kept += stretch
        elif not is_docstring:
            kept += stretch
    return [*made, "\n".join(kept).strip("\n")]


def _note(node: ast.Import | ast.ImportFrom, imports: dict[str, set[str]]) -> None:
    """Names by the module that they come from; for whole modules the text of the import, with no names."""
    if isinstance(node, ast.ImportFrom):
        imports.setdefault(node.module or "", set()).update(ast.unparse(each) for each in node.names)
    else:
        imports.setdefault(ast.unparse(node), set())


def _ordered(imports: dict[str, set[str]]) -> list[str]:
    """One line an import, as linters sort them: modules, names of modules, then what is not the standard library."""
    imports = {home: names for home, names in imports.items() if home != "__future__"}
    whole = sorted(home for home, names in imports.items() if not names)
    named = [
        f"from {home} import {', '.join(sorted(names, key=_sorted))}"
        for home, names in sorted(imports.items())
        if names
    ]
    foreign = [line for line in whole if line.split()[1] not in sys.stdlib_module_names]
    return [*(line for line in whole if line not in foreign), *named, "", *foreign]


def _sorted(name: str) -> tuple[bool, str]:
    # Classes in front of functions.
    return not name[:1].isupper(), name
