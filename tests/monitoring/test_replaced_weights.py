"""A watch that runs as a service sees weights that were replaced under its feet, in the next window."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from prunekit.errors import PrunekitError
from prunekit.models.source import resolve
from prunekit.monitoring.baseline.make import watch_init
from prunekit.monitoring.baseline.settings import WatchConfig
from prunekit.monitoring.log.request import Request
from prunekit.monitoring.running.models import signals_of
from prunekit.monitoring.running.run import watch_run
from prunekit.monitoring.scoring.contexts import ScoringConfig
from prunekit.monitoring.scoring.scorer import Scorer
from prunekit.monitoring.scoring.signals import model_signals
from tests.support.noisy import save_noisy
from tests.support.request_logs import write_log

pytestmark = pytest.mark.usefixtures("single_threaded")

CONFIG = ScoringConfig(prompts=8, least=8, prompt_tokens=24, answer_tokens=8, reference=16)
WINDOW = [Request(f"r{number}", prompt="abc" * (1 + number % 5), answer="bca") for number in range(50)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dense model, and two smaller ones: "good" and "broken"."""
    save_noisy(tmp_path, good=0.02, broken=0.5)
    shutil.copytree(tmp_path / "good", tmp_path / "served")
    return tmp_path


def made(folder: Path, name: str = "served") -> dict[str, Any]:
    scorer = Scorer(resolve(str(folder / name)), resolve(str(folder / "dense")), CONFIG, device="cpu")
    signals = model_signals(scorer, folder / "base.features.safetensors", window=50)
    return {each.name: each for each in signals if each.name != "prompt_mmd"}


def put(folder: Path, name: str, into: str = "served") -> None:
    """As a copy over the old file does it, with its times."""
    shutil.copy2(folder / name / "model.safetensors", folder / into / "model.safetensors")


def test_replaced_weights_are_read_anew(folder: Path) -> None:
    signals = made(folder)
    states = {name: each.reference(WINDOW) for name, each in signals.items()}

    def figures() -> dict[str, float | None]:
        return {name: each.score(WINDOW, states[name]).value for name, each in signals.items()}

    first = figures()
    assert first["other_weights"] == 0 and first["prompt_nll"] is not None and first["shadow_kl"] is not None
    put(folder, "broken")
    second = figures()
    assert second["other_weights"] == 1 and second["prompt_nll"] is None
    # The same as of a watch that was started now: the weights in memory are the new ones.
    other = made(folder, "broken")
    assert second["shadow_kl"] == other["shadow_kl"].score(WINDOW, states["shadow_kl"]).value != first["shadow_kl"]
    put(folder, "good")
    assert figures() == first
    # Only its times are others.
    os.utime(folder / "served" / "model.safetensors", (1, 1))
    assert figures() == first
    # The dense model.
    put(folder, "broken", "dense")
    assert signals["shadow_kl"].score(WINDOW, states["shadow_kl"]).value is None
    assert figures()["other_weights"] == 0


def test_a_release_that_is_promoted_is_seen(folder: Path) -> None:
    """`current` is a link that is put elsewhere."""
    (folder / "current").symlink_to("good")
    signals = made(folder, "current")
    state = signals["other_weights"].reference(WINDOW)
    assert signals["other_weights"].score(WINDOW, state).value == 0
    (folder / ".next").symlink_to("broken")
    os.replace(folder / ".next", folder / "current")
    assert signals["other_weights"].score(WINDOW, state).value == 1


def test_files_that_are_half_there_are_looked_at_again(folder: Path) -> None:
    signals = made(folder)
    state, file = signals["other_weights"].reference(WINDOW), folder / "served" / "model.safetensors"
    whole = file.read_bytes()
    for spoil in (
        lambda: file.write_bytes(whole[:100]),
        lambda: file.write_bytes(whole[:-50]),
        lambda: file.unlink(),
        lambda: (folder / "served").rename(folder / "away"),
    ):
        spoil()
        for _ in range(2):
            with pytest.raises(PrunekitError):
                signals["other_weights"].score(WINDOW, state)
    (folder / "away").rename(folder / "served")
    file.write_bytes(whole)
    assert signals["other_weights"].score(WINDOW, state).value == 0


def test_nothing_is_read_while_nothing_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signals = made(folder)
    states = {name: each.reference(WINDOW) for name, each in signals.items()}
    signals["shadow_kl"].score(WINDOW, states["shadow_kl"])

    def forbidden(*args: Any, **options: Any) -> None:
        raise AssertionError("it was read again")

    for name in ("resolve", "load_model", "load_tokenizer"):
        monkeypatch.setattr(f"prunekit.monitoring.scoring.scorer.{name}", forbidden)
    (folder / "served" / "README.md").write_text("A note.")
    for each in signals.values():
        each.score(WINDOW, states[each.name])


def test_a_service_gives_an_alarm_after_one_window(folder: Path) -> None:
    """A watch that follows a log: the weights are replaced between two windows."""
    log, base = folder / "log.jsonl", folder / "base.json"
    models = str(folder / "served"), str(folder / "dense")
    reference = write_log(folder / "reference.jsonl", 450, 1)
    signals = signals_of(*models, base, window=50, device="cpu")
    watch_init(reference, base, config=WatchConfig(window=50), signals=signals)
    lines = write_log(folder / "later.jsonl", 150, 2).read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:100]))
    notes: list[str] = []

    class Enough(Exception):
        pass

    def note(words: str) -> None:
        notes.append(words)
        raise Enough

    def replace() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            history = folder / "watch" / "state.json"
            if history.exists() and '"windows": 2' in history.read_text():
                break
            time.sleep(0.1)
        put(folder, "broken")
        with log.open("a") as handle:
            handle.writelines(lines[100:])

    thread = threading.Thread(target=replace)
    thread.start()
    with pytest.raises(Enough):
        watch_run(
            [log],
            base,
            folder / "watch",
            signals=lambda baseline: signals_of(*models, base, window=50, device="cpu"),
            follow=True,
            every=0.1,
            note=note,
        )
    thread.join()
    assert len(notes) == 1 and notes[0].startswith("window 3: investigate. other_weights:")
