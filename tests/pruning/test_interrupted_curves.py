"""A run that is ended while it draws loss curves: what was finished is not computed again, and nothing comes out
otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunekit.models.sublayers import KINDS
from prunekit.plan.allocations import OptimalConfig
from prunekit.pruning.curves import fisher_store, loss_curves, output_fisher
from prunekit.pruning.curves.curve_store import CurveStore
from prunekit.pruning.curves.divergence import Divergence
from prunekit.pruning.curves.fisher_store import FisherStore
from tests.support.tiny import VOCAB, one_thread, tiny_model
from tests.support.tiny_session import nothing, tiny_session

DRAWING = OptimalConfig(curve_tokens=12 * 32, fisher_tokens=12 * 32, scale_tokens=4 * 32)
IDS = torch.randint(0, VOCAB, (16, 32), generator=torch.Generator().manual_seed(0))
PASSES, LAYERS = 3, 4


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Every pass is old enough to be kept.
    monkeypatch.setattr(fisher_store, "_EVERY", 0.0)
    monkeypatch.setattr(fisher_store, "_SHARE", 1e9)
    with one_thread():
        yield


class Ended(BaseException):
    """As a signal ends it."""


class Counted:
    """Counts what is computed: backward passes, eliminations and measured divergences; ``end`` names one of them that
    is never begun."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, end: tuple[str, int] | None = None):
        self.done = {"fisher": 0, "curves": 0, "scale": 0}
        for name, owner, function in (
            ("fisher", output_fisher, "hidden_states"),
            ("curves", loss_curves, "Elimination"),
            ("scale", Divergence, "of_each"),
        ):
            monkeypatch.setattr(owner, function, self._counting(name, getattr(owner, function), end))

    def _counting(self, name: str, call: Any, end: tuple[str, int] | None) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if (name, self.done[name]) == end:
                raise Ended
            self.done[name] += 1
            return call(*args, **kwargs)

        return counted


def _curves(store: Path | None, model: nn.Module | None = None, advance: Any = nothing) -> Any:
    return tiny_session(model or tiny_model("llama"), IDS, drawing=DRAWING, store=store).curves(advance)


@pytest.mark.parametrize(
    ("end", "left"),
    [
        (("fisher", 0), {"fisher": PASSES, "curves": 2 * LAYERS, "scale": 2 * LAYERS}),
        (("fisher", 2), {"fisher": 1, "curves": 2 * LAYERS, "scale": 2 * LAYERS}),
        (("curves", 0), {"fisher": 0, "curves": 2 * LAYERS, "scale": 2 * LAYERS}),
        # In the third layer: two have their curves.
        (("curves", 5), {"fisher": 0, "curves": 4, "scale": 4}),
        (("scale", 7), {"fisher": 0, "curves": 2, "scale": 2}),
    ],
)
def test_a_run_goes_on(end: tuple[str, int], left: dict[str, int], tmp_path: Path) -> None:
    expected = _curves(None)
    with pytest.MonkeyPatch.context() as monkeypatch:
        Counted(monkeypatch, end)
        with pytest.raises(Ended):
            _curves(tmp_path)
    with pytest.MonkeyPatch.context() as monkeypatch:
        counted = Counted(monkeypatch)
        steps: list[float] = []
        made = _curves(tmp_path, advance=lambda count=1: steps.append(count))
    assert counted.done == left
    assert made == expected
    # The last layers' sums are needed no more.
    assert {file.name for file in tmp_path.iterdir()} == {f"layer-{index}.json" for index in range(LAYERS)}
    assert sum(steps) == PASSES + 3 * LAYERS


def test_another_size_computes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _curves(tmp_path)
    counted = Counted(monkeypatch)
    assert _curves(tmp_path) == made and not any(counted.done.values())


def test_one_layer_is_drawn_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _curves(tmp_path)
    (tmp_path / "layer-2.json").write_text("{}")
    counted = Counted(monkeypatch)
    assert _curves(tmp_path) == made
    assert counted.done == {"fisher": PASSES, "curves": 2, "scale": 2}
    assert CurveStore(tmp_path).curves(2) == made[2]


def _keep(store: FisherStore, sequences: int) -> None:
    sums = {(index, kind): torch.full((3, 3), float(sequences)) for index in range(2) for kind in KINDS}
    store.keep(sequences, sums, torch.Generator().get_state())


def test_what_is_kept_of_sums(tmp_path: Path) -> None:
    store = FisherStore(tmp_path, 2)
    assert store.read(9) is None
    _keep(store, 4)
    _keep(store, 8)
    assert {file.name for file in tmp_path.iterdir()} == {"fisher-8-0.safetensors", "fisher-8-1.safetensors"}
    found = store.read(9)
    assert found is not None and found.sequences == 8 and torch.equal(found.sums[1, "ffn"], torch.full((3, 3), 8.0))
    # Of more text than is wanted, sums say nothing.
    assert store.read(7) is None
    file = tmp_path / "fisher-8-1.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert store.read(9) is None
    store.forget()
    assert not list(tmp_path.iterdir())


def test_sums_are_kept_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(fisher_store.time, "monotonic", lambda: now)
    monkeypatch.setattr(fisher_store, "_EVERY", 10.0)
    store = FisherStore(tmp_path, 2)
    for now, kept in ((109.0, set()), (110.0, {4}), (119.0, {4}), (120.5, {12})):
        _keep(store, 4 if now < 115 else 12)
        assert {count for count, _ in store._files()} == kept
