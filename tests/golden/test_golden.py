"""Every method still gives the widths, kept units and weights that golden.json holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prunekit.plan import methods
from tests.golden.golden import CASES, METHODS, VALUES, Case, differences, machine, record, save_models

pytestmark = pytest.mark.usefixtures("single_threaded")


@dataclass(frozen=True)
class Golden:
    """The values, the models that they are of, and whether a machine of this kind wrote them."""

    cases: dict[str, Any]
    models: Path
    same_machine: bool


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Golden]:
    values = json.loads(VALUES.read_text())["tiny"]
    folder = tmp_path_factory.mktemp("golden")
    assert save_models(folder) == values["inputs"], "the models and the text themselves differ: nothing can be compared"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEKIT_CACHE", str(folder / "cache"))
        yield Golden(values["cases"], folder, machine() == values["machine"])


def test_every_method_is_there(golden: Golden) -> None:
    assert set(METHODS) == set(methods.METHODS)
    assert [*golden.cases] == [case.id for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_same_as_written(case: Case, golden: Golden, tmp_path: Path) -> None:
    assert not differences(case, golden.cases[case.id], record(case, golden.models, tmp_path), golden.same_machine)
