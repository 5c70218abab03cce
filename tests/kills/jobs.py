"""What is killed: every command that writes, on a tiny model."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.command import QUICK, save_tiny, set_options, write_text


@dataclass(frozen=True)
class Made:
    """The inputs, made once. ``bare`` is the model without its tokenizer, which GGUF has no kind for."""

    model: Path
    bare: Path
    text: Path


@dataclass(frozen=True)
class Job:
    """``run(output, flags)`` raises SystemExit as the command does; ``old(output)`` makes what is to be replaced.
    ``beside(folder)`` says what is wrong with what the command keeps beside its output, until that is there."""

    output: str
    run: Callable[[Path, tuple[str, ...]], None]
    old: Callable[[Path], None]
    beside: Callable[[Path], list[str]] = lambda folder: []


def prepare(work: Path) -> Made:
    model, text = work / "model", work / "text.txt"
    if not model.exists():
        save_tiny(model, layers=2)
        write_text(text)
        (work / "bare").mkdir()
        for name in ("config.json", "model.safetensors"):
            shutil.copy(model / name, work / "bare" / name)
    return Made(model, work / "bare", text)


def _command(*arguments: object) -> None:
    from prunekit.cli import main

    sys.argv = ["prunekit", *map(str, arguments)]
    main()


def _quietly(*arguments: object) -> None:
    """A command run here, as a preparation: it also imports what later ones need."""
    try:
        _command(*arguments)
    except SystemExit as stop:
        assert not stop.code, arguments


def rebuild_job(made: Made) -> Job:
    """The write path alone, through Python."""
    from prunekit.checkpoint.rebuild import rebuild
    from prunekit.errors import PrunekitError
    from prunekit.models.source import resolve
    from prunekit.plan import whole_plan

    source = resolve(str(made.model))

    def run(out: Path, flags: tuple[str, ...], dtype: str = "auto") -> None:
        try:
            rebuild(source, whole_plan(source.shape), out, dtype=dtype, overwrite=bool(flags))
        except PrunekitError:
            raise SystemExit(2) from None

    return Job("out", run, lambda out: run(out, (), "float16"))


def table_job(made: Made) -> Job:
    """A latency table, measured once and written again and again: times differ from run to run."""
    from prunekit.errors import PrunekitError
    from prunekit.models.source import resolve
    from prunekit.profiling.sublayer_latency import LatencyConfig, measure_table

    table = measure_table(resolve(str(made.model)), LatencyConfig(1, 8, "prefill", 2, 2, 1, None, 0), device="cpu")

    def run(out: Path, flags: tuple[str, ...]) -> None:
        try:
            table.save(out, bool(flags))
        except PrunekitError:
            raise SystemExit(2) from None

    def old(out: Path) -> None:
        out.write_text('{\n "format": "prunekit-latency-table"\n}\n')

    return Job("table.json", run, old)


def plan_job(made: Made) -> Job:
    arguments = ("--blocks", "0.7", "--calib", made.text, "--method", "magnitude", *QUICK)

    def run(out: Path, flags: tuple[str, ...]) -> None:
        _command("plan", made.model, "-o", out, *arguments, *flags)

    return Job("plan.json", run, lambda out: _quietly("plan", made.model, "-o", out, *arguments, "--blocks", "0.9"))


def prune_job(made: Made) -> Job:
    arguments = ("--blocks", "0.7", "--calib", made.text, "--method", "magnitude", *QUICK)

    def run(out: Path, flags: tuple[str, ...]) -> None:
        _command("prune", made.model, "-o", out, *arguments, *flags)

    return Job("out", run, lambda out: _quietly("prune", made.model, "-o", out, *arguments, "--blocks", "0.9"))


def candidates_job(made: Made) -> Job:
    told = ("--calib", made.text, "--method", "magnitude", *QUICK, "--length", 32, "--max-tokens", 256)

    def run(out: Path, flags: tuple[str, ...], sizes: str = "0.7") -> None:
        _command("candidates", made.model, "-o", out, *told, "--params", sizes, *flags)

    def old(out: Path) -> None:
        _quietly("candidates", made.model, "-o", out, *told, "--params", "0.9,0.7")

    return Job("out", run, old)


TRAINING = set_options(text_length=16, text_held_out=2, batch_tokens=32, learning_rate=1e-4)


def recover_job(made: Made) -> Job:
    """Three steps with a checkpoint each. What they need to go on lies beside the output, and can always be loaded."""
    small = made.model.with_name("small")
    if not small.exists():
        arguments = ("--blocks", "0.7", "--calib", made.text, "--method", "magnitude", *QUICK)
        _quietly("prune", made.model, "-o", small, *arguments)
    options = ("--teacher", made.model, "--text", made.text, "--checkpoint-minutes", 0, "--device", "cpu")
    arguments = (*options, "--dtype", "float32", *TRAINING)

    def run(out: Path, flags: tuple[str, ...], tokens: int = 96) -> None:
        _command("recover", small, "-o", out, *arguments, "--tokens", tokens, *flags)

    def old(out: Path) -> None:
        _quietly("recover", small, "-o", out, *arguments, "--tokens", 32)

    with TemporaryDirectory(dir=small.parent) as place:
        old(Path(place) / "out")
    return Job("out", run, old, Trainings("out.training"))


def stages_job(made: Made) -> Job:
    """Two stages of pruning and training, of one step and two, with a checkpoint where one brought it nearer."""
    told = ("--calib", made.text, "--method", "magnitude", *QUICK, "--text", made.text, "--dtype", "float32")
    turns = ("--recover", "--stages", 2, *TRAINING)

    def run(out: Path, flags: tuple[str, ...]) -> None:
        _command("prune", made.model, "-o", out, "--blocks", "0.7", *told, *turns, "--tokens", 96, *flags)

    def old(out: Path) -> None:
        _quietly("prune", made.model, "-o", out, "--blocks", "0.9", *told, *turns, "--tokens", 64)

    with TemporaryDirectory(dir=made.model.parent) as place:
        old(Path(place) / "out")
    return Job("out", run, old, Trainings("out.training"))


class Trainings:
    """Looks at the folder of a training, or of several that took turns with pruning: absent, or one that a run can go
    on from."""

    def __init__(self, name: str):
        self._name = name
        self._loaded: set[str] = set()

    def __call__(self, folder: Path) -> list[str]:
        from prunekit.errors import PrunekitError
        from prunekit.recovery.training.run_folder import look

        if not (folder / self._name).exists():
            return []
        found = look(folder / self._name)
        if found is None:
            return [f"{self._name} can't be gone on from"]
        try:
            # Those of a stage that has not ended, or whose model the next one prunes.
            for place in (found, *map(found.trained, range(1, 3))):
                for step in place.checkpoints():
                    self._load(place.checkpoint(step))
        except PrunekitError as error:
            return [str(error)]
        return []

    def _load(self, checkpoint: Path) -> None:
        from prunekit.checkpoint.manifest import verify
        from prunekit.models.source import load_model, resolve
        from prunekit.recovery.training.state import read_standing
        from prunekit.utils.files.hashes import sha256

        assert not verify(checkpoint).damaged, checkpoint
        # Its hashes are right: one copy of it is loaded for all.
        if (digest := sha256(checkpoint / "prunekit.json")) not in self._loaded:
            load_model(resolve(str(checkpoint)), device="cpu")
            assert read_standing(checkpoint).step == int(checkpoint.name.removeprefix("step-"))
            self._loaded.add(digest)


def export_job(target: str, *more: str) -> Callable[[Made], Job]:
    def job(made: Made) -> Job:
        model = made.bare if target == "gguf" else made.model

        def run(out: Path, flags: tuple[str, ...]) -> None:
            _command("export", model, "--to", target, "-o", out, "--no-verify", *more, *flags)

        return Job(
            "out",
            run,
            lambda out: _quietly("export", model, "--to", target, "-o", out, "--no-verify", "--context-length", "32"),
        )

    return job


JOBS: dict[str, Callable[[Made], Job]] = {
    "rebuild": rebuild_job,
    "table": table_job,
    "plan": plan_job,
    "prune": prune_job,
    "candidates": candidates_job,
    "recover": recover_job,
    "stages": stages_job,
    "hf": export_job("hf"),
    "vllm": export_job("vllm"),
    "gguf": export_job("gguf"),
    "torchscript": export_job("torchscript"),
    "torch-export": export_job("torch-export"),
    "onnx": export_job("onnx"),
    "onnx-genai": export_job("onnx-genai"),
    "openvino": export_job("openvino"),
    "tensorrt": export_job("tensorrt"),
    "executorch": export_job("executorch"),
}
