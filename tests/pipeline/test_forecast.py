"""What a run will take, by rates that are given here: how it grows, what is said of it, and what is refused."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prunekit import pipeline
from prunekit.errors import PrunekitError
from prunekit.models.dense import DenseModel
from prunekit.models.folder import read_config
from prunekit.models.source import Source, resolve
from prunekit.pipeline import plan_config
from prunekit.pipeline.asked import Recovery
from prunekit.pipeline.forecast import room as rooms
from prunekit.pipeline.forecast import trial
from prunekit.pipeline.forecast.lesson import Lesson
from prunekit.pipeline.forecast.room import Room, check_memory, room, training_room
from prunekit.pipeline.forecast.sentence import Parts, sentence_of
from prunekit.pipeline.forecast.tell import foretell
from prunekit.pipeline.forecast.trial import Rates, measure
from prunekit.pipeline.forecast.work import Text, Work
from prunekit.pipeline.phases import prune_phases
from prunekit.pipeline.stages import read_recovery
from prunekit.plan.shape import LayerShape, ModelShape
from prunekit.plan.training import TextConfig
from prunekit.utils.measuring import crowd
from prunekit.utils.phases import titles
from prunekit.utils.phases.run import Run, running
from tests.support.command import save_tiny
from tests.support.tiny import one_thread

SMOLLM2 = ModelShape(576, 64, 49152, True, (LayerShape(9, 3, 1536),) * 30)
LLAMA_8B = ModelShape(4096, 128, 128256, False, (LayerShape(32, 8, 14336),) * 32)
QUICK = Text(256, 8, (32,), curves=8192, fisher=4096, scale=1024, refit=16384)
# A thread of 50 billion operations a second, in each of these.
RATES = Rates(1.4e-4, 1.4e-4, 2.3e-8, 4.6e-8, 3e-3, 2e-6, 4e-11, 1.7e-10)


def test_seconds_grow_with_the_work() -> None:
    work = Work(SMOLLM2, 0.8, QUICK, 450_000_000)
    found = work.seconds(RATES)
    assert all(seconds >= 0 for seconds in found.values())
    # 8,192 tokens through 30 layers, moments and eliminations, and 60 passes from each layer on.
    assert found[titles.FISHER] == pytest.approx(4096 * (30 * 2.8e-4 + 49152 * 4.6e-8 + 60 * 576**2 * 4e-11), rel=0.05)
    twice = replace(work, text=replace(QUICK, refit=2 * QUICK.refit, fisher=2 * QUICK.fisher)).seconds(RATES)
    assert twice[titles.FISHER] == pytest.approx(2 * found[titles.FISHER])
    assert 1.8 < twice[titles.REFIT] / found[titles.REFIT] <= 2
    assert work.seconds(RATES, ranks=2)[titles.CURVES] == pytest.approx(found[titles.CURVES] / 2)
    # What is kept is not written again, and what is not asked for takes nothing.
    assert replace(work, text=replace(QUICK, unwritten=())).seconds(RATES)[titles.OWN_TEXT] == 0
    assert found[titles.RESCALING] == found[titles.SCORING] == 0


def test_each_round_is_of_what_is_left() -> None:
    text = replace(QUICK, refitted=16384)
    once = Work(SMOLLM2, 0.5, text, 0)
    found = replace(once, rounds=(0.2, 0.4)).seconds(RATES)
    assert {title: found[title] for title in once.seconds(RATES)} == once.seconds(RATES)
    # A model of 80 % is refitted as one is that is left at 80 %, on as much text.
    assert found["refit, round 2"] == pytest.approx(replace(once, share=0.8).seconds(RATES)[titles.REFIT])
    for title in (titles.FISHER, titles.CURVES):
        assert found[title] > found[f"{title}, round 2"] > found[f"{title}, round 3"] > 0.4 * found[title]
    assert found[titles.WHOLE] == found["whole sub-layers, round 2"] == 0
    assert replace(once, rounds=(0.2,)).operations() > once.operations()


def test_memory_of_large_models_is_mostly_weights() -> None:
    small = room(Work(SMOLLM2, 0.8, QUICK, 450_000_000), 4, fast=True)
    # 2.8 GB were seen at most.
    assert 2.2e9 < small.memory < 3.6e9 and small.least < 0.7e9
    large = room(Work(LLAMA_8B, 0.8, QUICK, 13_000_000_000), 2, fast=False)
    assert 16e9 < large.least < large.memory < 60e9
    assert large.disk > 13e9


def test_too_little_memory_is_said_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    needed, cpu = Room(memory=20e9, least=16e9, disk=1e9), torch.device("cpu")
    for there, raises in ((64e9, False), (18e9, False), (8e9, True)):
        monkeypatch.setattr(rooms, "whole_memory", lambda device, there=there: there)
        if raises:
            with pytest.raises(PrunekitError, match=r"take 16 GB of memory, and cpu has 8\.0 GB in all"):
                check_memory(needed, cpu)
        else:
            assert (check_memory(needed, cpu) is None) == (there > 20e9)


def test_a_machine_tells_its_memory() -> None:
    assert 1e8 < rooms.whole_memory(torch.device("cpu")) < 1e15


def test_the_sentence() -> None:
    needed = Room(memory=3.1e9, least=1e9, disk=0.6e9)
    said = sentence_of(540, needed)
    assert said.startswith("This takes about 9 minutes, 3.1 GB of memory and 600 MB of disk (a prediction")
    assert "less time where an earlier run" in sentence_of(45, needed, kept=True)
    assert sentence_of(45, needed).startswith("This takes about 45 seconds")
    assert sentence_of(9 * 3600, needed).startswith("This takes about 9.0 hours")


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "phi3", "olmo2"])
def test_every_family_can_be_tried(model_type: str, tmp_path: Path) -> None:
    source = resolve(str(save_tiny(tmp_path / "model", model_type)))
    with one_thread():
        options: dict[str, Any] = {"dtype": source.dtype, "device": torch.device("cpu"), "length": 16, "together": 2}
        rates = measure(source, **options, needs="weight_gradients")
    assert all(0 < rate < 1 for name, rate in vars(rates).items() if name != "backward")


# Configs of Llama 3.2 1B and Llama 3.1 8B.
SIZES: dict[str, dict[str, Any]] = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128},
}
# As if the layers of the 1B model were computed at 500 billion operations a second.
FASTER = Rates(2.4e-4, 2.4e-4, 8.2e-9, 1.6e-8, 5e-3, 1e-6, 4e-12, 1.7e-11, 7e-4, 2e-8)


class Told:
    """Keeps what is announced."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def begin(self, run: Any) -> None: ...
    def see(self, event: Any) -> None: ...
    def tick(self) -> None: ...
    def say(self, text: str) -> None: ...
    def end(self, failed: bool) -> None: ...
    def announce(self, text: str) -> None:
        self.said.append(text)


def without_weights(folder: Path, size: str) -> Source:
    """A model of which there is nothing but its config."""
    from transformers import LlamaConfig

    sizes = {**SIZES[size], "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
    LlamaConfig(**sizes, tie_word_embeddings=size == "1b", architectures=["LlamaForCausalLM"]).save_pretrained(folder)
    made = Source(f"x/{size}", folder, *read_config(folder))
    vars(made).update(fingerprint="ab" * 32, dtype=torch.bfloat16)
    return made


@pytest.fixture
def told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What :func:`foretell` says of a model of that size, with 64 GB of memory and the rates of FASTER, and the run."""
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(rooms, "whole_memory", lambda device: 64e9)
    monkeypatch.setattr(trial, "measure", lambda *args, **options: FASTER)

    def made(size: str, method: str = "prunekit", recovery: Recovery | None = None, **goals: Any) -> tuple[str, Run]:
        source, watcher = without_weights(tmp_path / size, size), Told()
        machine = {"dtype": "auto", "device": "cpu", "store_dtype": "auto"}
        config = plan_config(goals, method, None, None, None, **machine)
        share = pipeline._share(source, config)
        lesson = None
        if recovery is not None:
            lesson = Lesson(source.shape, share, read_recovery(recovery, config, None, "auto"))
        run = Run([watcher], ticking=False)
        with running(run):
            run.more = lesson is not None
            run.expect(prune_phases(config.recipe, False), run)
            dense = DenseModel(source, dtype="auto", device="cpu")
            foretell(dense, config.recipe, share, stored=2, out=tmp_path / "out", lesson=lesson)
        return " ".join(watcher.said), run

    return made


@pytest.mark.parametrize(("size", "bytes_"), [("1b", 2.47e9), ("8b", 16.06e9)])
def test_a_run_is_told_of_before_weights_are_there(told_of: Any, size: str, bytes_: float) -> None:
    said, run = told_of(size, blocks=0.8)
    seconds = run._foreseen
    words = re.fullmatch(
        r"This takes about ([\d.]+) (minutes|hours), ([\d.]+) GB of memory and ([\d.]+) GB of disk "
        r"\(a prediction from trial steps with one layer\)\.",
        said,
    )
    assert words is not None, said
    in_all = float(words[1]) * {"minutes": 60, "hours": 3600}[words[2]]
    # Every phase of the run, and no other: whole sub-layers stay by this method.
    expected = ("reading text", "own text", "Fisher information", "loss curves", "widths", "refit")
    assert in_all == pytest.approx(
        sum(seconds[each] for each in (*expected, "rescaling", "cutting and writing")), rel=0.03
    )
    assert all(seconds[each] > 0 for each in expected) and seconds["turning"] == 0
    assert float(words[3]) * 1e9 > bytes_
    # Four fifths of the blocks in bfloat16 are among it.
    assert float(words[4]) * 1e9 > 0.8 * bytes_


def test_other_programs_are_told_of(told_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "crowded", lambda load, threads: "Others want them too.")
    said, _ = told_of("1b", blocks=0.8)
    assert said.endswith("with one layer). Others want them too.")


def test_what_reads_weights_alone_tells_of_the_disk(
    told_of: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free = shutil.disk_usage("/")._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: free)
    said, _ = told_of("8b", "magnitude", blocks=0.8)
    assert said == "" and "The output takes about 13 GB" in caplog.text and "1.0 GB free" in caplog.text


def test_slicegpt_is_told_of(told_of: Any) -> None:
    said, run = told_of("8b", "slicegpt", params=0.8)
    seconds = run._foreseen
    # 2,048 tokens through 32 layers, 65 sums of 4096² in float64, and the axes.
    assert seconds["turning"] == pytest.approx(
        2048 * (32 * 2.4e-4 + 65 * 4096**2 * 1.2 * 4e-12) + 0.5 * 4096**3 * 1.7e-11, rel=0.01
    )
    # 8 billion weights with 3,264 axes.
    assert seconds["cutting and writing"] == pytest.approx(1 + 6.4e9 * 2 / 2e8 + 8.03e9 * 3264 * 1.2 * 4e-12, rel=0.02)
    assert said.startswith("This takes about ") and "of memory and 13 GB of disk (a prediction" in said


def test_a_recovery_is_told_of_with_its_pruning(told_of: Any) -> None:
    said, _ = told_of("1b", "magnitude", Recovery(tokens=1_000_000, text="builtin"), blocks=0.8)
    layers, vocabulary = 16, 128256
    dense = layers * 2.4e-4 + vocabulary * 8.2e-9
    student = 0.8 * layers * 3 * 2.4e-4 + vocabulary * 1.6e-8
    # With three trial steps of 512 tokens, and 7 readings of what is held out.
    text = TextConfig()
    looked = 7 * text.held_out * text.length * (1.8 * layers * 2.4e-4 + 2 * vocabulary * 8.2e-9)
    hours = ((1_000_000 + 1536) * (dense + student) + looked) / 3600
    assert f"of pruning, {hours:.1f} hours of training), " in said
    # A million tokens are too few for stages; ten million of a model that loses 40 % are not.
    said, _ = told_of("1b", "prunekit", Recovery(tokens="10M", text="builtin"), blocks=0.6)
    assert re.search(r"hours of pruning in 5 stages, [\d.]+ hours of training\)", said)
    said, _ = told_of("1b", "prunekit", Recovery(minutes=300, text="builtin", stages=2), blocks=0.8)
    assert re.search(r"of pruning in 2 stages, 5\.[0-9] hours of training\), ", said)


def test_a_training_that_can_not_fit_is_refused_before_anything_is_loaded(told_of: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(rooms, "whole_memory", lambda device: 40e9)
    asked = Recovery(tokens="10M", text="builtin")
    # 16 bytes for each of 5.6 billion weights that move, and 4 for each of the dense model.
    with pytest.raises(PrunekitError, match=r"take 1\d\d GB of memory, .* Train adapters alone \(--set lora=16\)"):
        told_of("8b", "prunekit", asked, blocks=0.8)
    with pytest.raises(PrunekitError, match="take 16 GB of memory"):
        monkeypatch.setattr(rooms, "whole_memory", lambda device: 8e9)
        told_of("8b", "slicegpt", params=0.8)


def test_adapters_take_less(tmp_path: Path) -> None:
    shape = without_weights(tmp_path, "1b").shape
    config = plan_config({"blocks": 0.8}, "magnitude", None, None, None)
    options = {"tokens": "10M", "text": "builtin"}
    whole, adapters = (
        Lesson(shape, 0.8, read_recovery(Recovery(**options, settings=settings), config, None, "auto"))
        for settings in ({}, {"lora": 16})
    )
    needed = training_room(whole, 4, 512)
    blocks, outside = 0.8 * shape.block_parameters, shape.parameters - shape.block_parameters
    assert needed.least == pytest.approx(16 * blocks + 4 * outside + 4 * shape.parameters, rel=1e-6)
    assert training_room(adapters, 4, 512).least == pytest.approx(needed.least - 12 * blocks, rel=1e-6)
    assert adapters.seconds(FASTER, "cpu") < whole.seconds(FASTER, "cpu")


def test_parts_of_the_sentence() -> None:
    said = sentence_of(3 * 3600, Room(3.1e9, 1e9, 0.6e9), parts=Parts(600, 10_200, 3))
    assert said.startswith(
        "This takes about 3.0 hours (10 minutes of pruning in 3 stages, 2.8 hours of training), 3.1 GB"
    )
