"""What is spoiled: one small file of every kind that prunekit reads, and the commands that read it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.command import save_tiny, write_text
from tests.support.report_files import all_files
from tests.support.tiny import tiny_model
from tests.support.tiny_gguf import write_tiny_gguf
from tests.support.tiny_text import tiny_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
)
_DRAWN = ("--set", "sequences=4", "--set", "length=16", "--set", "ffn_multiple=1", "--device", "cpu")
_TEXT = ("--calib", "{text}", "--device", "cpu")
_MIXED = ("--calib", "{text}:0.5,self:0.5", "--device", "cpu")
_ONCE = ("--repeats", "2", "--max-minutes", "0", "--warmup", "0", "--no-memory")
_KEPT = ("--set", "sequences=2", "--set", "length=8", "--set", "ffn_multiple=1", "--device", "cpu")

# The result is checked where a plan is spoiled; there too would be half of the time.
PRUNE = ("prune", "{m}", "-o", "{out}", "--blocks", "0.7", "--method", "magnitude", "--check", "none", *_DRAWN)
EVAL = ("eval", "{m}", "--text", "{text}", "--length", "16", "--max-tokens", "64", "--device", "cpu")
GENERATE = ("generate", "{m}", "--prompt", "The quick", "--max-new-tokens", "2", "--device", "cpu")
EXPORT = ("export", "{m}", "--to", "hf", "-o", "{out}")
DRAW = ("plan", "{m}", "-o", "{out}", "--blocks", "0.7", "--calib", "{text}", "--method", "minitron", *_DRAWN)
PLAN = ("prune", "{m}", "-o", "{out}", "--plan", "{plan}")
FLAP = ("plan", "{m}", "-o", "{flap}", "--blocks", "0.7", "--calib", "{text}", "--method", "flap", *_DRAWN)
REFIT = (
    "plan",
    "{m}",
    "-o",
    "{refit}",
    "--blocks",
    "0.7",
    "--calib",
    "{text}:0.5,self:0.5",
    "--set",
    "units=ffn",
    *_DRAWN,
)
FAMILIES = ("gemma3_text", "qwen2", "phi3", "smollm3", "olmo2", "mistral")
BENCH = (
    "bench",
    "{export}",
    "--baseline",
    "{export}",
    "--runtime",
    "hf",
    "--prompt-tokens",
    "4",
    "--new-tokens",
    "2",
    *_ONCE,
)
OPTIMAL = (
    "plan",
    "{m}",
    "-o",
    "{out}",
    "--blocks",
    "0.7",
    "--calib",
    "self",
    "--set",
    "refit=false",
    "--set",
    "units=ffn",
    *_KEPT,
)
LATENCY = ("--latency", "0.8", "--latency-table", "{table}", "--calib", "{text}", "--set", "refit=false", *_KEPT)
_RESULTS = ("bench", "cand/candidates", "edge", "eval", "guidellm", "plan", "prune", "vllm")
REPORT = ("report", *(f"{{results}}/{name}.json" for name in _RESULTS), "{export}", "-o", "{out}.html", "--show-texts")
CONVERT = ("export", "{gguf}", "--to", "hf", "-o", "{out}", "--no-verify")


@dataclass(frozen=True)
class Kind:
    """``files`` (patterns below the corpus) of which one is spoiled, what of the corpus must be there, and commands."""

    name: str
    files: tuple[str, ...]
    needs: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]


def _with(old: str, new: str, *commands: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(word.replace(old, new) for word in command) for command in commands)


KINDS = (
    Kind("config", ("m/config.json",), ("m", "text.txt"), (PRUNE, EVAL, GENERATE, EXPORT)),
    *(
        Kind(f"config {family}", (f"{family}/config.json",), (family,), _with("{m}", f"{{{family}}}", PRUNE, EXPORT))
        for family in FAMILIES
    ),
    Kind("generation config", ("m/generation_config.json",), ("m",), (PRUNE, GENERATE, EXPORT)),
    Kind("tokenizer", ("m/tokenizer.json", "m/tokenizer_config.json"), ("m", "text.txt"), (EVAL, GENERATE, PRUNE)),
    Kind("chat template", ("m/chat_template.jinja",), ("m",), ((*GENERATE, "--chat"),)),
    Kind("safetensors", ("m/model.safetensors",), ("m", "text.txt"), (PRUNE, EVAL)),
    Kind("index", ("s/model.safetensors.index.json",), ("s", "text.txt"), _with("{m}", "{s}", PRUNE, EVAL)),
    Kind("gguf", ("t.gguf",), ("t.gguf",), (CONVERT,)),
    Kind("plan", ("plan.json",), ("m", "plan.json"), (PLAN,)),
    Kind("flap plan", ("flap.json",), ("m", "flap.json", "text.txt"), _with("{plan}", "{flap}", (*PLAN, *_TEXT))),
    Kind("refit plan", ("refit.json",), ("m", "refit.json", "text.txt"), _with("{plan}", "{refit}", (*PLAN, *_MIXED))),
    Kind("any file", ("m/*",), ("m", "text.txt"), (PRUNE, EVAL, EXPORT, GENERATE)),
    Kind(
        "manifest",
        ("pruned/prunekit.json", "pruned/plan.json", "pruned/config.json"),
        ("pruned",),
        (("inspect", "{pruned}"), ("inspect", "{pruned}", "--json")),
    ),
    Kind("export manifest", ("export/prunekit-export.json", "export/config.json"), ("export",), (BENCH,)),
    Kind(
        "cache",
        ("cache/curves/*/*", "cache/self/*/*", "cache/curves/*", "cache/self/*"),
        ("m", "cache"),
        (OPTIMAL,),
    ),
    Kind("gguf cache", ("cache/gguf/*/*", "cache/gguf/*"), ("t.gguf", "cache"), (CONVERT,)),
    Kind(
        "results",
        ("results/*.json", "results/cand/*.json", "export/prunekit-export.json", "export/parity.json"),
        ("results", "export"),
        (REPORT,),
    ),
    Kind("text", ("text.txt",), ("m", "text.txt"), (EVAL, DRAW)),
    Kind("jsonl", ("rows.jsonl",), ("m", "rows.jsonl"), _with("{text}", "{rows}", EVAL, DRAW)),
    Kind(
        "latency table", ("table.json",), ("m", "table.json", "text.txt"), (("plan", "{m}", "-o", "{out}", *LATENCY),)
    ),
)


def places(here: Path) -> dict[str, str]:
    """What the words in braces stand for in the folder ``here``."""
    names = {"m": "m", "s": "s", "gguf": "t.gguf", "plan": "plan.json", "pruned": "pruned", "export": "export"}
    names |= {"text": "text.txt", "rows": "rows.jsonl", "table": "table.json", "out": "out", "results": "results"}
    names |= {"flap": "flap.json", "refit": "refit.json", **{family: family for family in FAMILIES}}
    return {word: str(here / name) for word, name in names.items()}


def filled(command: Sequence[str], here: Path) -> list[str]:
    """``command`` with files of ``here`` in place of the words in braces."""
    made = []
    for word in command:
        for name, file in places(here).items():
            word = word.replace(f"{{{name}}}", file)
        made.append(word)
    return made


def make_corpus(here: Path) -> None:
    """Everything in the empty folder ``here``, by the commands themselves where they can."""
    os.environ["PRUNEKIT_CACHE"] = str(here / "cache")
    save_tiny(here / "m", layers=2, tokenizer=_with_template())
    model = tiny_model("llama", layers=2)
    model.save_pretrained(here / "s", max_shard_size="60KB")
    tiny_tokenizer().save_pretrained(here / "s")
    write_text(here / "text.txt")
    rows = [json.dumps({"text": line}) for line in (here / "text.txt").read_text().split("\n\n")]
    (here / "rows.jsonl").write_text("\n".join(rows))
    write_tiny_gguf(here / "t.gguf")
    _write_table(here)
    (here / "results").mkdir()
    all_files(here / "results")
    for family in FAMILIES:
        save_tiny(here / family, family, layers=2)
    _run([word.replace(str(here / "out"), str(here / "pruned")) for word in filled(PRUNE, here)])
    (here / "plan.json").write_bytes((here / "pruned" / "plan.json").read_bytes())
    _run(["export", str(here / "m"), "--to", "hf", "-o", str(here / "export")])
    _run(filled(FLAP, here))
    _run(filled(REFIT, here))
    # What the cache keeps, and every command once: what they import is then there for all inputs.
    for number, command in enumerate(dict.fromkeys(command for kind in KINDS for command in kind.commands)):
        _run([word if word != str(here / "out") else str(here / f"spare-{number}") for word in filled(command, here)])


def _with_template() -> object:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _write_table(here: Path) -> None:
    from prunekit.models.source import resolve
    from prunekit.plan.latency_table import LatencyTable, cut_heads
    from prunekit.utils.timing import Summary

    shape = resolve(str(here / "m")).shape
    layer = shape.layers[0]

    def took(seconds: float) -> Summary:
        return Summary(seconds, seconds, seconds, 3)

    LatencyTable(
        "tiny",
        shape,
        ("full_attention",) * len(shape.layers),
        {"full_attention": {(kv, group): took(kv * group * 1e-3) for kv, group in cut_heads(layer)}},
        {width: took(width * 1e-4) for width in (1, layer.intermediate_size // 2, layer.intermediate_size)},
        took(1e-3),
        {"phase": "decode", "batch": 1, "length": 8, "dtype": "float32", "threads": 1},
        {"device": "made up"},
    ).save(here / "table.json")


def _run(arguments: list[str]) -> None:
    from prunekit.cli import main

    said = io.StringIO()
    sys.argv = ["prunekit", *arguments]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main()
    except SystemExit as stop:
        raise AssertionError(f"{' '.join(arguments)} ended with {stop.code}: {said.getvalue()[-500:]}") from None
