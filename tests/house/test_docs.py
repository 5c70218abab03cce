"""The README and docs/ are true: links lead somewhere, commands parse, named files exist, snippets run."""

from __future__ import annotations

import ast
import importlib
import os
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from prunekit.cli import app
from prunekit.plan.training import training_knobs
from tests.support.command import ROOT, save_tiny, write_text
from tests.support.pages import Page
from tests.support.warm import Warm

README = Page(ROOT / "README.md")
PAGES = [README, *(Page(path) for path in sorted((ROOT / "docs").glob("*.md")))]
RESULTS = ROOT / "benchmarks" / "results"
MOST_LINES = 150
# Options in sentences that other programs have.
OF_GPU_CHECK = dict.fromkeys(("--block-seconds", "--no-compile", "--resume"), "make gpu-check")
OTHERS = {
    **OF_GPU_CHECK,
    "--enable-lora": "vllm serve",
    "--disable-hybrid-kv-cache-manager": "vllm serve",
    "--model-impl": "vllm serve",
    "--continuous-batching": "transformers serve",
    "--alias": "llama-server",
    "--served-model-name": "vllm serve",
    "--no-deps": "pip",
}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path.name)


def subcommands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def root_options() -> set[str]:
    """Those of `prunekit` itself."""
    return {word for each in typer.main.get_command(app).params for word in each.opts}


def options() -> set[str]:
    found = {"--help", *root_options()}
    for command in subcommands().values():
        for each in getattr(command, "commands", {}).values():
            found |= {word for parameter in each.params for word in (*parameter.opts, *parameter.secondary_opts)}
        for parameter in command.params:
            found |= {*parameter.opts, *parameter.secondary_opts}
    return found


def test_the_readme_is_short() -> None:
    assert len(README.text.splitlines()) <= MOST_LINES


@every_page
def test_links_lead_somewhere(page: Page) -> None:
    lost = []
    for link in page.links():
        name, _, anchor = link.partition("#")
        target = (page.path.parent / name).resolve() if name else page.path
        if not target.exists() or (anchor and anchor not in Page(target).anchors()):
            lost.append(link)
    assert not lost


def test_every_page_is_found_from_the_readme() -> None:
    seen, todo = set(), [README.path]
    while todo:
        path = todo.pop()
        if path in seen or path.suffix != ".md":
            continue
        seen.add(path)
        todo += [(path.parent / link.partition("#")[0]).resolve() for link in Page(path).links()]
    assert {page.path for page in PAGES} <= seen


@every_page
def test_commands_parse(page: Page) -> None:
    for arguments in page.commands("prunekit"):
        name, *rest = arguments
        command = subcommands()[name]
        if hasattr(command, "commands"):
            name, command, rest = f"{name} {rest[0]}", command.commands[rest[0]], rest[1:]
        command.make_context(f"prunekit {name}", [*rest])


@every_page
def test_options_in_sentences_exist(page: Page) -> None:
    named = {code.split()[0] for code in page.inline() if code.startswith("--")}
    for code in page.inline():
        if code.startswith("prunekit "):
            first = code.split()[1]
            assert first in subcommands() or first in root_options(), code
            named |= set(re.findall(r"--[a-z][\w-]*", code))
    assert not named - options() - OTHERS.keys()


@every_page
def test_targets_of_make_exist(page: Page) -> None:
    targets = set(re.findall(r"^([a-z][\w.-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = "\n".join([*page.blocks(), *page.inline()])
    assert set(re.findall(r"\bmake ([a-z][\w.-]*)", code)) <= targets


@every_page
def test_results_that_are_named_exist(page: Page) -> None:
    named = set(re.findall(r"benchmarks/results/([\w.-]+\w)", page.text))
    assert {name for name in named if not (RESULTS / name).exists()} == set()


def test_every_result_has_a_row() -> None:
    """By the first name of the row, whatever its endings: `quality_cpu.json`, `.md`, `.png`."""
    rows = re.findall(r"^\| `([\w-]+)", (RESULTS / "README.md").read_text(), re.MULTILINE)
    files = {path.name for path in RESULTS.iterdir()} - {"README.md"}
    assert {name for name in files if not name.startswith(tuple(rows))} == set()
    assert {row for row in rows if not any(name.startswith(row) for name in files)} == set()


@every_page
def test_snippets_import_what_exists(page: Page) -> None:
    for block in page.blocks("python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prunekit"):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_names_in_the_python_reference_exist() -> None:
    text = Page(ROOT / "docs" / "python.md").text
    named = re.findall(r"`(prunekit(?:\.[a-z_]+)+)\.(\w+)[(`]", text)
    assert len(named) > 20
    for module, name in named:
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def test_the_settings_of_a_training_are_listed() -> None:
    """Copy the rows from what this prints where they differ."""
    rows = [
        f"| `{each.name}` | {'–' if each.default is None else each.default} | {each.help} |"
        for each in training_knobs().values()
    ]
    section = Page(ROOT / "docs" / "recovery.md").text.partition("## Settings")[2].partition("\n## ")[0]
    assert [line for line in section.splitlines() if line.startswith("| `")] == rows, "\n".join(rows)


def run_snippet(code: str, folder: Path, **changes: str) -> str:
    """Run ``code`` in ``folder``, on a tiny model in place of the built-in one. Returns what it prints."""
    model = save_tiny(folder / "tiny", intermediate_size=256, max_position_embeddings=512)
    changes = {'"smollm2-135m"': repr(str(model)), **changes}
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    process = Warm(code, [], cwd=folder, env={**os.environ, "PRUNEKIT_CACHE": str(folder / "cache")})
    out, err = process.communicate(timeout=120)
    assert process.wait() == 0, err
    return out


def test_the_readmes_snippet_runs(tmp_path: Path) -> None:
    (code,) = README.blocks("python")
    share, parameters, path = run_snippet(code, tmp_path).split()
    assert 0.7 < float(share) <= 0.8 and int(parameters) > 0 and path == "from-python"
    assert (tmp_path / "from-python" / "model.safetensors").is_file()


def test_a_recovery_in_python_runs(tmp_path: Path) -> None:
    (code,) = Page(ROOT / "docs" / "recovery.md").blocks("python")
    write_text(tmp_path / "my.txt", 12_000)
    write_text(tmp_path / "other.txt", 2000)
    few = 'tokens=1024, settings={"text_length": 64, "text_held_out": 2}'
    printed = run_snippet(code, tmp_path, **{'tokens="1M"': few}).split()
    before, after, first, kl, second, other = printed
    assert 0 < float(after) <= float(before) and (first, second) == ("recovered", "smaller")
    assert float(kl) > 0 and float(other) > 0


def test_the_default_method_in_python_runs(tmp_path: Path) -> None:
    (code,) = Page(ROOT / "docs" / "python.md").blocks("python")
    run_snippet(code, tmp_path, **{"sequences=256, ffn_multiple=128": "sequences=8, length=32, ffn_multiple=8"})
    assert (tmp_path / "smaller" / "model.safetensors").is_file()
