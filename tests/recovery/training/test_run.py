"""`prunekit recover` from folder to folder: goes on after a kill, never worse, refusals, what is written."""

from __future__ import annotations

import json
import math
import os
import signal
import time
import weakref
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunekit.checkpoint.manifest import verify
from prunekit.errors import PrunekitError
from prunekit.models.source import load_model, resolve
from prunekit.pipeline import Recovery, prune, recover
from prunekit.plan import Plan
from prunekit.plan.recipe import Recipe
from prunekit.recovery import lessons
from prunekit.recovery.lessons import Trained
from prunekit.recovery.training import state
from prunekit.recovery.training.progress import Listener
from prunekit.utils.files.hashes import sha256
from prunekit.utils.phases import titles
from prunekit.utils.phases.event import ProgressEvent
from prunekit.utils.phases.telling import phases, progress, unneeded
from tests.cli.test_full_disk import room
from tests.support.recovering import SETTINGS, killed_before, recover_tiny
from tests.support.tiny import tiny_model
from tests.support.tiny_text import tiny_tokenizer
from tests.support.warm import Warm


def test_the_result_is_an_ordinary_checkpoint_with_its_history(places: Path, tmp_path: Path) -> None:
    rows: list[dict] = []
    made = recover_tiny(places, tmp_path / "out", listener=Listener(row=rows.append))
    assert made.after < made.before and made.used == 8
    assert not (tmp_path / "out.training").exists()
    report = verify(tmp_path / "out")
    assert not report.damaged and report.facts["source"]["name"] == verify(places / "small").facts["source"]["name"]
    plan = Plan.load(tmp_path / "out" / "plan.json")
    assert plan.layers == Plan.load(places / "small" / "plan.json").layers
    (told,) = plan.provenance["recovery"]
    assert told["tokens"] == 512 and told["held_out_kl"] == {"before": made.before, "after": made.after}
    assert told["settings"]["learning_rate"] == 1e-3 and told["teacher"]["fingerprint"]
    assert str(places) not in (tmp_path / "out" / "plan.json").read_text(encoding="utf-8")
    source = resolve(str(tmp_path / "out"))
    assert source.shape == resolve(str(places / "small")).shape
    assert [row["step"] for row in rows if "step" in row] == list(range(8))
    written = [json.loads(line) for line in (tmp_path / "out" / "recovery.jsonl").read_text("utf-8").splitlines()]
    assert [row["step"] for row in written if "step" in row] == list(range(8))
    assert (tmp_path / "out" / "recovery.png").stat().st_size > 1000


def test_what_is_left_in_all_is_told_while_it_trains(places: Path, tmp_path: Path) -> None:
    """With the check that the command adds."""
    events: list[ProgressEvent] = []
    with progress(events.append), phases(titles.CHECK):
        recover_tiny(places, tmp_path / "out")
        unneeded(titles.CHECK)
    trained = [each for each in events if each.title == titles.TRAINING and each.what == "step"]
    assert len(trained) >= 8
    for each in trained:
        assert each.left is not None and each.left_in_all is not None and each.left_in_all > each.left


def test_the_written_folder_gives_the_logits_of_the_model_in_memory(places: Path, tmp_path: Path, monkeypatch) -> None:
    kept = {}
    original = Trained.finish

    def keeping(trained, *rest):
        made = original(trained, *rest)
        ids = torch.arange(3, 40)[None]
        with torch.no_grad():
            kept["logits"] = trained.training.student.model(input_ids=ids).logits.clone()
        return made

    monkeypatch.setattr(Trained, "finish", keeping)
    recover_tiny(places, tmp_path / "out")
    model = load_model(resolve(str(tmp_path / "out")), device="cpu")
    with torch.no_grad():
        assert torch.equal(model(input_ids=torch.arange(3, 40)[None]).logits, kept["logits"])


def test_weights_are_stored_in_bfloat16_and_are_those_that_were_judged(places: Path, tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    def finish(trained, *rest):
        made = original(trained, *rest)
        with torch.no_grad():
            seen.append(trained.training.student.model(input_ids=torch.arange(3, 40)[None]).logits.clone())
        return made

    original = Trained.finish
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trained, "finish", finish)
        made = recover_tiny(places, tmp_path / "out", store_dtype="bfloat16")
    assert made.used and made.after < made.before
    assert {each.dtype for each in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    model = load_model(resolve(str(tmp_path / "out")), dtype="float32", device="cpu")
    with torch.no_grad():
        assert torch.equal(model(input_ids=torch.arange(3, 40)[None]).logits, seen[0])


def test_what_is_judged_and_told_is_what_rounding_leaves(places: Path, tmp_path: Path) -> None:
    worse = {"learning_rate": 1.0, "clip": 1e3}
    made = recover_tiny(places, tmp_path / "given", store_dtype="bfloat16", settings=worse)
    own, given = (load_file(path / "model.safetensors") for path in (tmp_path / "given", places / "small"))
    assert made.used == 0 and all(torch.equal(own[name], given[name].to(torch.bfloat16)) for name in given)
    # Steps so small come nearer in float32, and are less than a bfloat16.
    again = recover_tiny(places, tmp_path / "out", model=tmp_path / "given", settings={"learning_rate": 1e-9})
    assert again.before == pytest.approx(made.after, rel=1e-6) and made.after != made.before
    assert again.standing.best["step"] > 0 and again.used == 0 and again.after == again.before
    kept = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(own[name], kept[name]) for name in own)


@pytest.mark.parametrize("how", ["slicegpt", "uniform"])
def test_models_of_other_forms_are_recovered(places: Path, tmp_path: Path, how: str) -> None:
    """Rotated ones, and such that were padded with zeros, which stay."""
    text = str(places / "text.txt")
    recipe = Recipe.of("slicegpt" if how == "slicegpt" else "adapt-pruner", calib=text, sequences=8, length=16)
    layout = "uniform" if how == "uniform" else "per-layer"
    given = prune(str(places / "dense"), tmp_path / "given", params=0.85, recipe=recipe, layout=layout, device="cpu")
    made = recover_tiny(places, tmp_path / "out", model=tmp_path / "given")
    assert made.used and made.after < made.before
    assert made.written.architecture == given.written.architecture
    own, before = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "given"))
    assert {name: each.shape for name, each in own.items()} == {name: each.shape for name, each in before.items()}
    model = load_model(resolve(str(tmp_path / "out")), device="cpu")
    with torch.no_grad():
        assert model(input_ids=torch.arange(3, 40)[None]).logits.isfinite().all()
    if how == "uniform":
        empty = [(before[name] == 0).all(-1) for name in before if name.endswith("up_proj.weight")]
        assert sum(int(each.sum()) for each in empty) > 0
        places_ = [name for name in before if name.endswith("up_proj.weight")]
        assert all(not own[name][rows].any() for name, rows in zip(places_, empty, strict=True))


def test_so_much_is_computed_at_a_time_as_fits_into_a_third_of_the_free_memory(
    places: Path, tmp_path: Path, monkeypatch
) -> None:
    one = 3 * 4 * SETTINGS["text_length"] * resolve(str(places / "small")).shape.activation_numbers_per_token()
    made = {}
    for free in (4 * one, 4 * one - 3, one, one - 3):
        monkeypatch.setattr(lessons, "free_bytes", lambda device, free=free: free)
        done = recover_tiny(places, tmp_path / str(free), tokens=64)
        made[free] = (done.standing.micro_batch, done.standing.recompute, done.after)
    assert [each[:2] for each in made.values()] == [(4, False), (2, False), (1, False), (1, True)]
    assert all(each[2] == pytest.approx(made[one][2], rel=1e-6) for each in made.values())


def test_a_recovered_model_can_be_recovered_again(places: Path, tmp_path: Path) -> None:
    first = recover_tiny(places, tmp_path / "first")
    second = recover(
        str(tmp_path / "first"),
        str(places / "dense"),
        tmp_path / "second",
        text=str(places / "text.txt"),
        tokens=64 * 8,
        device="cpu",
        dtype="float32",
        settings=SETTINGS,
    )
    assert second.before == pytest.approx(first.after, rel=1e-5)
    assert len(Plan.load(tmp_path / "second" / "plan.json").provenance["recovery"]) == 2


def test_what_is_not_better_is_not_written(places: Path, tmp_path: Path) -> None:
    made = recover_tiny(places, tmp_path / "out", settings={"learning_rate": 1.0, "clip": 1e3})
    assert made.used == 0 and made.after == made.before
    own, given = (load_file(path / "model.safetensors") for path in (tmp_path / "out", places / "small"))
    assert all(torch.equal(own[name], given[name]) for name in given)


def test_the_best_step_is_written_where_later_ones_are_worse(places: Path, tmp_path: Path, monkeypatch) -> None:
    from prunekit.recovery.training.loop import Training

    original = Training.measure

    def measure(self):
        row = original(self)
        if row["step"] > 4:
            row["kl"] += 10
        return row

    monkeypatch.setattr(Training, "measure", measure)
    made = recover_tiny(places, tmp_path / "out")
    assert made.used == 4 and made.after < made.before


def test_a_killed_training_goes_on_and_ends_as_if_it_had_not_been(places: Path, tmp_path: Path) -> None:
    whole = recover_tiny(places, tmp_path / "whole", tokens=64 * 30)
    script = (
        "import sys; from prunekit.pipeline import recover; from prunekit.recovery.training.progress import Listener\n"
        "row = lambda row: print(row, flush=True)\n"
        f"recover({str(places / 'small')!r}, {str(places / 'dense')!r}, {str(tmp_path / 'out')!r}, "
        f"text={str(places / 'text.txt')!r}, tokens={64 * 30}, device='cpu', dtype='float32', settings={SETTINGS!r}, "
        "checkpoint_minutes=0, listener=Listener(row=row))\n"
    )
    kills = 0
    for wait in (3, 9):
        child = Warm(script, [])
        for lines, _ in enumerate(child.stdout, start=1):
            if lines == wait:
                time.sleep(0.02)
                os.kill(child.pid, signal.SIGKILL)
                break
        child.communicate()
        kills += child.returncode == -signal.SIGKILL
        assert (tmp_path / "out.training" / "run.json").is_file()
        for step in (tmp_path / "out.training").glob("step-*"):
            assert not verify(step).damaged
            load_model(resolve(str(step)), device="cpu")
    assert kills == 2 and not (tmp_path / "out").exists()
    ended = Warm(script, [])
    _, said = ended.communicate(timeout=120)
    assert ended.returncode == 0, said
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    one, other = ((tmp_path / name / "recovery.jsonl").read_text("utf-8") for name in ("whole", "out"))
    assert one == other and whole.used == 30


@pytest.mark.parametrize("what", ["weights", "moments"])
def test_a_full_disk_keeps_the_last_good_checkpoint(places: Path, tmp_path: Path, monkeypatch, what: str) -> None:
    original, calls = state.write_trained, []
    size = 60_000 if what == "weights" else (places / "small" / "model.safetensors").stat().st_size + 10_000

    def full(*args, **kwargs):
        calls.append(args)
        with room(size) if len(calls) == 3 else nullcontext():
            return original(*args, **kwargs)

    monkeypatch.setattr(state, "write_trained", full)
    with pytest.raises(PrunekitError, match="Free some space"):
        recover_tiny(places, tmp_path / "out", checkpoint_minutes=0)
    assert not (tmp_path / "out").exists()
    (last,) = sorted((tmp_path / "out.training").glob("step-*"))[-1:]
    assert last.name == "step-00000002" and not verify(last).damaged
    assert not list((tmp_path / "out.training").glob(".*"))
    monkeypatch.setattr(state, "write_trained", original)
    if what == "moments":
        return
    whole = recover_tiny(places, tmp_path / "whole")
    made = recover_tiny(places, tmp_path / "out", checkpoint_minutes=0)
    assert made.after == whole.after


def test_a_damaged_checkpoint_is_told(places: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Trained, "finish", lambda *args: (_ for _ in ()).throw(PrunekitError("enough")))
    with pytest.raises(PrunekitError, match="enough"):
        recover_tiny(places, tmp_path / "out", checkpoint_minutes=0)
    (last,) = sorted((tmp_path / "out.training").glob("step-*"))[-1:]
    tensors = load_file(last / "training" / "moments.safetensors")
    save_file({name: each + 1 for name, each in tensors.items()}, last / "training" / "moments.safetensors")
    with pytest.raises(PrunekitError, match=r"is damaged: training/moments\.safetensors changed"):
        recover_tiny(places, tmp_path / "out", checkpoint_minutes=0)


def test_moments_are_read_one_weight_at_a_time(places: Path, tmp_path: Path, monkeypatch) -> None:
    """And written into files of some size."""
    monkeypatch.setattr(state, "_FILE_BYTES", 100_000)
    whole = recover_tiny(places, tmp_path / "whole", tokens=64 * 3)
    with killed_before(2):
        recover_tiny(places, tmp_path / "out", tokens=64 * 3, checkpoint_minutes=0)
    files = sorted((tmp_path / "out.training" / "step-00000002" / "training").glob("*.safetensors"))
    assert [file.name for file in files][:2] == ["moments-00001.safetensors", "moments-00002.safetensors"]
    assert files[-1].name == "moments.safetensors" and all(file.stat().st_size < 110_000 for file in files)
    given: list[weakref.ref] = []
    most = 0
    original = state.Kept.__getitem__

    def read(self, name: str) -> torch.Tensor:
        nonlocal most
        tensor = original(self, name)
        given.append(weakref.ref(tensor))
        most = max(most, sum(each() is not None for each in given))
        return tensor

    monkeypatch.setattr(state.Kept, "__getitem__", read)
    made = recover_tiny(places, tmp_path / "out", tokens=64 * 3)
    # Two moments of every weight of four layers and of the last norm, and the state of the generator.
    assert len(given) == 2 * (4 * 9 + 1) + 1
    assert most <= 4 and made.after == whole.after


def test_only_the_same_training_goes_on(places: Path, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Trained, "finish", lambda *args: (_ for _ in ()).throw(PrunekitError("enough")))
        with pytest.raises(PrunekitError, match="enough"):
            recover_tiny(places, tmp_path / "out", checkpoint_minutes=0)
    with pytest.raises(PrunekitError, match="begun with another settings"):
        recover_tiny(places, tmp_path / "out", settings={"learning_rate": 2e-3})
    with pytest.raises(PrunekitError, match="begun with another budget"):
        recover_tiny(places, tmp_path / "out", tokens=64 * 9)
    made = recover_tiny(places, tmp_path / "out", tokens=64 * 9, overwrite=True)
    assert made.standing.step == 9


def test_a_training_goes_on_with_fewer_sequences_at_a_time(places: Path, tmp_path: Path) -> None:
    """Where memory was too small, so that the system ended it. Twice: the second run ends before a checkpoint."""
    whole = recover_tiny(places, tmp_path / "whole", settings={"micro_batch": 1, "recompute": True})
    with killed_before(5):
        recover_tiny(places, tmp_path / "out", checkpoint_minutes=0, settings={"micro_batch": 4})
    with killed_before(5):
        recover_tiny(places, tmp_path / "out", settings={"micro_batch": 1, "recompute": True})
    made = recover_tiny(places, tmp_path / "out", settings={"micro_batch": 1, "recompute": True})
    assert (made.standing.micro_batch, made.standing.recompute) == (1, True)
    assert made.standing.resources == {"micro_batch": 1, "recompute": True}
    assert made.after == pytest.approx(whole.after, rel=1e-5) and made.used == whole.used


def test_a_training_that_took_less_goes_on_so(places: Path, tmp_path: Path) -> None:
    """The same command does not try again what did not fit."""
    out = tmp_path / "out"
    with killed_before(5):
        recover_tiny(places, out, checkpoint_minutes=0, settings={"micro_batch": 4})
    (last,) = sorted(Path(f"{out}.training").glob("step-*"))[-1:]
    _rewrite_state(last, micro_batch=1)
    assert recover_tiny(places, out, settings={"micro_batch": 4}).standing.micro_batch == 1


def test_a_training_of_an_earlier_version_goes_on(places: Path, tmp_path: Path) -> None:
    """It wrote how a step is computed among what decides the training."""
    whole = recover_tiny(places, tmp_path / "whole")
    with killed_before(5):
        recover_tiny(places, tmp_path / "out", checkpoint_minutes=0)
    run = tmp_path / "out.training" / "run.json"
    said = json.loads(run.read_text())
    said["asked"]["settings"] |= {"micro_batch": None, "recompute": None}
    del said["settled"]["resources"]
    run.write_text(json.dumps(said))
    for step in (tmp_path / "out.training").glob("step-*"):
        _rewrite_state(step, resources=None)
    assert recover_tiny(places, tmp_path / "out").after == whole.after


def _rewrite_state(checkpoint: Path, **changes: object) -> None:
    """As another run would have written it. None: it did not know of that."""
    path = checkpoint / "training" / "state.json"
    said = json.loads(path.read_text())
    standing = {**said["standing"], **changes}
    said["standing"] = {name: value for name, value in standing.items() if changes.get(name, value) is not None}
    path.write_text(json.dumps(said))
    manifest = checkpoint / "prunekit.json"
    listed = json.loads(manifest.read_text())
    listed["files"]["training/state.json"] = sha256(path)
    manifest.write_text(json.dumps(listed))


def test_a_folder_of_the_users_is_never_taken(places: Path, tmp_path: Path) -> None:
    (tmp_path / "out.training").mkdir()
    (tmp_path / "out.training" / "thesis.txt").write_text("mine", encoding="utf-8")
    for overwrite in (False, True):
        with pytest.raises(PrunekitError, match=r"something else is there|did not write"):
            recover_tiny(places, tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out.training" / "thesis.txt").read_text(encoding="utf-8") == "mine"


def test_bad_input_is_one_sentence(places: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tiny_model("llama", vocab_size=160).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    swapped = tmp_path / "swapped"
    tiny_model("llama").save_pretrained(swapped)
    tiny_tokenizer(extra=("<x>",)).save_pretrained(swapped)
    short = tmp_path / "short.txt"
    short.write_text("a b", encoding="utf-8")
    empty = tmp_path / "empty.txt"
    empty.write_text("", encoding="utf-8")
    small, dense, text = str(places / "small"), str(places / "dense"), str(places / "text.txt")
    for teacher, given, sentence in (
        (str(other), {}, "knows 128 tokens and .* 160"),
        (str(swapped), {}, "give other tokens"),
        (dense, {"text": str(short)}, "tokens"),
        (dense, {"text": str(empty)}, "empty|no text|holds 0 tokens"),
        (dense, {"tokens": None}, "--tokens 10M or --minutes 60"),
        (dense, {"minutes": 5.0}, "one of the two"),
        (dense, {"tokens": "many"}, "--tokens many is no number"),
        (dense, {"dtype": "float16"}, "float32 or bfloat16"),
        (dense, {"settings": {**SETTINGS, "clip": math.inf}}, "clip must be a number above 0, got inf"),
        (dense, {"checkpoint_minutes": math.nan}, "checkpoint_minutes must be a number of minutes, 0 or more, got nan"),
        (dense, {"checkpoint_minutes": -5.0}, "0 or more"),
    ):
        options = {"text": text, "tokens": 64, "device": "cpu", "settings": SETTINGS, **given}
        with pytest.raises(PrunekitError, match=sentence):
            recover(small, teacher, tmp_path / "out", **options)
        assert not list(tmp_path.glob("out*"))


def test_turns_take_no_senseless_minutes_either() -> None:
    with pytest.raises(PrunekitError, match="0 or more"):
        Recovery(tokens=64, checkpoint_minutes=-1.0)


def test_apples_gpu_is_not_trained_on(places: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PrunekitError, match="float64, which mps does not have; say --device cpu"):
        recover_tiny(places, tmp_path / "out", device="mps")
    turns = Recovery(tokens=64, text=str(places / "text.txt"), settings=SETTINGS)
    recipe = Recipe.of("magnitude", ffn_multiple=1)
    with pytest.raises(PrunekitError, match="float64, which mps does not have"):
        prune(str(places / "dense"), tmp_path / "out", blocks=0.7, recipe=recipe, recover=turns, device="mps")
    assert not list(tmp_path.iterdir())
    assert recover_tiny(places, tmp_path / "out", tokens=64, device="auto").facts["computed_in"]["device"] == "cpu"


def test_curves_go_where_tensorboard_finds_them(places: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    made = recover_tiny(places, tmp_path / "out", tensorboard=tmp_path / "runs")
    events = accumulator.EventAccumulator(str(tmp_path / "runs"))
    events.Reload()
    assert [each.step for each in events.Scalars("train/kl")] == list(range(8))
    held = [(each.step, pytest.approx(each.value)) for each in events.Scalars("held_out/kl")]
    assert held == [(row["step"], row["kl"]) for row in made.standing.held_out]


def test_text_that_comes_again_and_again_is_told(places: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    text = tmp_path / "short.txt"
    text.write_text("One text of very few words, which a training soon knows by heart.", encoding="utf-8")
    recover_tiny(places, tmp_path / "often", text=str(text), listener=Listener(note=notes.append))
    (note,) = notes
    assert note.startswith("short.txt has ") and "times; after 4 times that brings little." in note
    notes.clear()
    recover_tiny(places, tmp_path / "once", listener=Listener(note=notes.append))
    assert notes == []


def test_what_samples_writes_the_training_text(places: Path, tmp_path: Path, monkeypatch) -> None:
    """On a GPU that is the decode runtime; here another in its place. It is let go when the text is packed."""
    from contextlib import contextmanager

    from prunekit.data.self_generated import Writer
    from prunekit.kernels.runtime import text_writer as module

    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    asked: list[str] = []

    def write(starts: torch.Tensor, length: int, seed: int) -> torch.Tensor:
        asked.append("text")
        return starts.repeat(1, length)

    @contextmanager
    def writing(source, device):
        asked.append(f"{source.path.name} on {device}")
        yield Writer("repeats", write)
        asked.append("let go")

    monkeypatch.setattr(module, "text_writer", writing)
    recover_tiny(places, tmp_path / "out", text="self", tokens=128)
    assert asked == ["dense on cpu", "text", "let go"]
    (told,) = Plan.load(tmp_path / "out" / "plan.json").provenance["recovery"]
    assert told["text"]["parts"][0]["writer"] == "repeats"
