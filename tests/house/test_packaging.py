"""What pyproject.toml lists by hand must match the folders that are there."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
REGISTER = "optimum.commands.register"


def test_every_package_is_in_the_wheel() -> None:
    tomllib = pytest.importorskip("tomllib")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(file.relative_to(ROOT).parent.parts)
        for top in ("prunekit", "kernels", "export")
        for file in (ROOT / top).rglob("__init__.py")
    }
    named = [name if name.startswith("prunekit") else f"prunekit.{name}" for name in found]
    assert sorted(listed) == sorted([*named, REGISTER])


def test_subcommand_of_optimum_is_in_a_namespace() -> None:
    """An __init__.py of ours would hide every other package's subcommands."""
    assert {file.name for file in (ROOT / "export" / "optimum_register").glob("*.py")} == {"register_prunekit.py"}


def test_mapped_packages_import_under_their_names() -> None:
    import prunekit.export
    import prunekit.kernels

    assert Path(prunekit.kernels.__file__).parent == ROOT / "kernels"
    assert Path(prunekit.export.__file__).parent == ROOT / "export"


def test_version_and_installed_requirements() -> None:
    import prunekit

    assert prunekit.__version__ == importlib.metadata.version("prunekit")
    core = [Requirement(text) for text in importlib.metadata.requires("prunekit") or [] if "extra ==" not in text]
    for requirement in core:
        installed = importlib.metadata.version(requirement.name)
        assert requirement.specifier.contains(installed, prereleases=True), f"{requirement} but {installed}"


def test_extras_that_are_named_anywhere_exist() -> None:
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert all(extras.values()), "an extra that brings nothing"
    files = [file for top in ("prunekit", "kernels", "export", "benchmarks") for file in (ROOT / top).rglob("*.py")]
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {
        name
        for file in [*files, *pages]
        for name in re.findall(r"""prunekit\[([a-z0-9-]+)\]|\bextra="([a-z0-9-]+)\"""", file.read_text("utf-8"))
    }
    assert {name for found in named for name in found if name} <= set(extras)
    developers = re.search(r"^DEV_EXTRAS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert developers and set(developers[1].split(",")) <= set(extras)


def test_tables_of_measurements_are_in_the_wheel() -> None:
    tomllib = pytest.importorskip("tomllib")
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert data["prunekit.kernels"] == ["tables/*.json"]
    assert {file.suffix for file in (ROOT / "kernels" / "tables").iterdir()} <= {".json", ".md"}
