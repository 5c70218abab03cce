"""How much a folder may hold, so that it can be read at a glance."""

from __future__ import annotations

import pytest

from tests.support.command import ROOT
from tests.support.imports import TREES

MOST_FILES = 14
MOST_ENTRIES = 16


@pytest.mark.parametrize("tree", TREES)
def test_no_folder_of_the_package_has_too_many_files(tree: str) -> None:
    folders = [ROOT / tree, *(path for path in (ROOT / tree).rglob("*") if path.is_dir())]
    counts = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in folders}
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES} == {}


def test_the_root_of_the_package_has_few_entries() -> None:
    # py.typed is a mark for type checkers, which nobody opens.
    unseen = {"__pycache__", "py.typed"}
    entries = sorted(path.name for path in (ROOT / "prunekit").iterdir() if path.name not in unseen)
    assert len(entries) <= MOST_ENTRIES, entries


@pytest.mark.parametrize("tree", TREES)
def test_every_folder_of_the_package_is_a_package(tree: str) -> None:
    """But the one in which optimum looks for commands, which must be a namespace."""
    folders = {file.parent for file in (ROOT / tree).rglob("*.py")}
    without = {str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file()}
    assert without <= {"export/optimum_register"}


def test_the_long_test_files_are_there() -> None:
    """A file that moved would begin among the last."""
    from tests.conftest import LONG_FILES

    assert [name for name in LONG_FILES if not (ROOT / "tests" / name).is_file()] == []
