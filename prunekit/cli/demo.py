"""The main job on a real model: a size measured, two pruned, exported, timed, and one page that decides."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.errors import PrunekitError
from prunekit.utils.files.atomic import new_folder
from prunekit.utils.files.hashes import digests
from prunekit.utils.files.replacing import DEMO, local
from prunekit.utils.machine import speed_key
from prunekit.utils.phases.relay import relayed
from prunekit.utils.phases.telling import phases
from prunekit.utils.process.child import Ended, run_python
from prunekit.utils.progress import progress

if TYPE_CHECKING:
    from prunekit.report.write import Report

MODEL = "smollm2-135m"
PROMPT = "Name three things a good engineer checks before a release."
# Enough to tell the methods apart, and read within seconds.
_TOKENS = "2048"
# Of the timing: tokens a run, half of what is usual, for ten pairs of runs are the least; and the most minutes.
_TIMED, _MINUTES = "16", "0.5"
# Seconds, as those of the steps.
_LOADING = 8.0
_TITLE = "SmolLM2-135M: is a smaller one worth it?"

# Run without prunekit: whoever gets the checkpoint needs no more than torch and transformers.
_PLAIN_LOAD = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompt = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
chat = [{"role": "user", "content": prompt}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
tokens = model.generate(**inputs, max_new_tokens=48, do_sample=False)
print(json.dumps({
    "class": type(model).__name__,
    "parameters": sum(p.numel() for p in model.parameters()),
    "answer": tokenizer.decode(tokens[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True),
    "prunekit_loaded": "prunekit" in sys.modules,
}))
"""


SIZES, SMALLER, ADAPT, ONNX, GGUF = map(Path, ("sizes", "smaller", "adapt-pruner", "smaller-onnx", "smaller-gguf"))
EVAL, BENCH = Path("eval.json"), Path("bench.json")


@dataclass(frozen=True)
class Step:
    """One command of `prunekit`. ``title`` says what it does, in about so many ``seconds`` on two cores of a server;
    ``words`` are what a user would type after prunekit, in which a Path is within the demo's folder; ``says`` is the
    file that gets what it prints as JSON."""

    title: str
    seconds: float
    words: tuple[str | Path, ...]
    says: str | None = None

    @property
    def command(self) -> str:
        return f"prunekit {' '.join(map(str, self.words))}"


@dataclass(frozen=True)
class Demo:
    """What the demo has made: the page, and its own notes ``data`` (commands, seconds, what a plain load answered)."""

    report: Report
    data: dict[str, Any]


def steps(blocks: str, calib: str | None, text: str) -> tuple[Step, ...]:
    """The commands of the demo, in their order: without ONNX Runtime, no ONNX."""
    given = () if calib is None else ("--calib", calib)
    read = ("--max-tokens", _TOKENS)
    quick = ("candidates", MODEL, "--blocks", blocks, "--effort", "quick", *given)
    cut = ("prune", MODEL, "--method", "adapt-pruner", "--blocks", blocks, *given)
    judged = ("eval", SMALLER, ADAPT, "--baseline", MODEL, "--text", text, *read)
    plan = SIZES / f"plan-{float(blocks):g}.json"
    # Compiling llama-cpp-python takes minutes: where it is not there, the file is written and not opened.
    opened = ("--text", text, "--baseline", MODEL) if _there("llama_cpp") else ("--no-verify",)
    gguf = ("export", SMALLER, "--to", "gguf", "--dtype", "q8_0", *opened, "-o", GGUF)
    timed = ("--baseline", MODEL, "--new-tokens", _TIMED, "--max-minutes", _MINUTES)
    # A step of its own judges both.
    unjudged = ("--check", "none")
    by_plan = ("prune", MODEL, "--plan", plan, *given, *unjudged)
    made = [
        Step(
            "a size measured before it is made", 240, (*quick, "--eval", text, *read, "--for", "gguf:q8_0", "-o", SIZES)
        ),
        Step("pruned by the default method", 55, (*by_plan, "-o", SMALLER), "prune.json"),
        Step("pruned by adapt-pruner", 140, (*cut, *unjudged, "-o", ADAPT), "prune-adapt-pruner.json"),
        Step("quality of both", 24, (*judged, "-o", EVAL)),
        Step("latency and memory, in turns", 60, ("bench", SMALLER, *timed, "-o", BENCH)),
    ]
    if _there("onnx") and _there("onnxruntime"):
        made.append(Step("exported to ONNX", 45, ("export", SMALLER, "--to", "onnx", "-o", ONNX)))
    return (*made, Step("exported to GGUF", 8, gguf))


def run(output: Path, blocks: str, calib: str | None, text: str, overwrite: bool) -> Demo:
    """Do it all below ``output``, which appears only when everything went well. Raises PrunekitError with what a step
    said where it failed."""
    from prunekit.report.write import write_report

    planned = steps(_share(blocks), calib, text)
    done: list[dict[str, Any]] = []
    loading = "loaded by torch and transformers alone"
    work = {step.title: step.seconds for step in planned} | {loading: _LOADING}
    with (
        phases(*work) as told,
        new_folder(output, overwrite, kind=DEMO, inputs=local(calib, text)) as folder,
    ):
        if told is not None:
            told.weigh(work, ["demo", *speed_key("cpu")])
        for step in planned:
            with progress(step.title, 1) as advance:
                done.append({"step": step.title, "command": step.command, "seconds": _take(step, folder)})
                advance()
        with progress(loading, 1) as advance:
            plain = _answer(run_python(code=_PLAIN_LOAD, arguments=[str(folder / "smaller"), PROMPT]))
            advance()
        report = write_report(_files(folder), folder / "report.html", title=_TITLE)
        data = {"model": MODEL, "prompt": PROMPT, "loaded": plain, "steps": done}
        (folder / "demo.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        manifest = {"format": DEMO.format, "version": 1, "files": digests(folder)}
        (folder / DEMO.manifest).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    # Under the name that it has now.
    names = {field: output / getattr(report, field).name for field in ("page", "kpis")}
    return Demo(replace(report, **names), data)


def _files(folder: Path) -> list[Path]:
    """What the report is about, of what the steps have left."""
    told = (SIZES, SMALLER, ADAPT, "prune.json", "prune-adapt-pruner.json", EVAL, BENCH, ONNX, GGUF)
    return [folder / name for name in told if (folder / name).exists()]


def _take(step: Step, folder: Path) -> float:
    """Run a step in a process of its own. Returns its seconds."""
    start = time.perf_counter()
    words = [str(folder / word) if isinstance(word, Path) else word for word in step.words]
    with relayed() as variables:
        said = _answer(run_python(module="prunekit", arguments=[*words, "--json"], variables=variables))
    if step.says is not None:
        (folder / step.says).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    return round(time.perf_counter() - start, 1)


def _share(blocks: str) -> str:
    """One size as a share. Raises PrunekitError where it is none."""
    try:
        share = float(blocks)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise PrunekitError(f"The demo keeps a share of the blocks, such as --blocks 0.8, not {blocks!r}.")
    return blocks


def _there(package: str) -> bool:
    return find_spec(package) is not None


def _answer(ended: Ended) -> Any:
    """What a child printed, parsed. Raises PrunekitError with its last line where it failed."""
    if not ended.ok:
        raise PrunekitError(f"A step of the demo failed: {ended.reason.removeprefix('prunekit: ')}")
    # Libraries may print warnings first; the report is the last object that begins at the start of a line.
    begins = [found.start() for found in re.finditer("^{", ended.out, re.MULTILINE)]
    try:
        return json.loads(ended.out[begins[-1] :])
    except (ValueError, IndexError):
        raise PrunekitError("A step of the demo printed no result; run its command by itself to see why.") from None
