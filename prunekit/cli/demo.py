"""The main job on a real model: plan, prune, rebuild, load again in other processes, compare."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.utils.files.atomic import new_folder
from prunekit.utils.files.hashes import digests
from prunekit.utils.files.replacing import DEMO, local
from prunekit.utils.process.child import Ended, run_python
from prunekit.utils.terminal import SafeConsole

MODEL = "smollm2-135m"
PROMPT = "Name three things a good engineer checks before a release."

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


@dataclass(frozen=True)
class DemoReport:
    """What the demo saw, for machines and for people."""

    data: dict[str, Any]
    markdown: str


def run(output: Path, blocks: str, calib: str, text: str, overwrite: bool, *, quiet: bool = False) -> DemoReport:
    """Do it all below ``output``, which appears only when everything went well."""
    from prunekit.checkpoint.rebuild import rebuild
    from prunekit.models.source import resolve
    from prunekit.plan.goals import parse_target
    from prunekit.plan.recipe import Recipe
    from prunekit.pruning.planner import PlanConfig, compute_plan
    from prunekit.report.pictures import draw_widths

    seconds: dict[str, float] = {}

    def step(name: str, what: str, work: Callable[[], Any]) -> Any:
        if not quiet:
            SafeConsole(stderr=True).print(f"[bold]{what}[/bold]")
        start = time.perf_counter()
        result = work()
        seconds[name] = round(time.perf_counter() - start, 1)
        return result

    config = PlanConfig(
        target=parse_target(None, blocks, None),
        recipe=Recipe.of("adapt-pruner", calib=calib),
    )
    with new_folder(output, overwrite, kind=DEMO, inputs=local(calib, text)) as folder:
        checkpoint = folder / "checkpoint"
        source = step("load", f"1. {MODEL}: converting its GGUF file to safetensors (once)", lambda: resolve(MODEL))
        plan = step("plan", "2. Adapt-Pruner decides widths, 2 % at a time", lambda: compute_plan(source, config))
        plan.save(folder / "plan.json")
        draw_widths(plan, folder / "widths.png")
        written = step("rebuild", "3. Cutting the weights to these widths", lambda: rebuild(source, plan, checkpoint))
        plain = step(
            "load_plain",
            "4. Loading it in a process that has only torch and transformers",
            lambda: _answer(run_python(code=_PLAIN_LOAD, arguments=[str(checkpoint), PROMPT])),
        )
        quality = step(
            "eval",
            "5. Perplexity and agreement with the dense model, in another process",
            lambda: _prunekit("eval", str(checkpoint), "--baseline", MODEL, "--text", text),
        )
        speed = step(
            "bench",
            "6. Latency and memory, dense and pruned in turns",
            lambda: _prunekit("bench", str(checkpoint), "--baseline", MODEL),
        )
        data = {
            "model": MODEL,
            "share_of_blocks": plan.share_of_blocks,
            "share_of_parameters": plan.share_of_parameters,
            "widths": [layer.intermediate_size for layer in plan.shape.layers],
            "num_key_value_heads": [layer.num_key_value_heads for layer in plan.shape.layers],
            "architecture": written.architecture,
            "loaded": plain,
            "quality": quality,
            "speed": speed,
            "seconds": seconds,
        }
        report = DemoReport(data, markdown(data))
        (folder / "report.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        (folder / "report.md").write_text(report.markdown, encoding="utf-8")
        manifest = {"format": DEMO.format, "version": 1, "files": digests(folder)}
        (folder / DEMO.manifest).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return report


def _prunekit(*arguments: str) -> Any:
    return _answer(run_python(module="prunekit", arguments=[*arguments, "--json"]))


def _answer(ended: Ended) -> Any:
    """What a child printed, parsed. Raises PrunekitError with its last line where it failed."""
    if not ended.ok:
        raise PrunekitError(f"A step of the demo failed: {ended.reason.removeprefix('prunekit: ')}")
    # Libraries may print warnings first; the report is the JSON object at the end.
    return json.loads(ended.out[ended.out.find("{") :])


def markdown(data: dict[str, Any]) -> str:
    """The demo's table, as it stands in the README."""
    result, (bench,) = data["quality"]["results"][0], data["speed"]["results"]
    dense, pruned = data["speed"]["dense"], data["speed"]["pruned"]
    machine = data["speed"]["machine"]

    def size(name: str, unit: float, digits: int = 1) -> str:
        a, b = dense[name], pruned[name]
        if a is None or b is None:  # not every system tells the peak memory of a process
            return "not known | not known | |"
        return f"{a / unit:,.{digits}f} | {b / unit:,.{digits}f} | {b / a:.3f} |"

    def timing(name: str) -> str:
        made = bench[name]
        ratio = made["ratio"]
        return (
            f"{made['dense']['median'] * 1e3:,.1f} | {made['pruned']['median'] * 1e3:,.1f} | {ratio['median']:.3f} "
            f"({ratio['p20']:.3f} to {ratio['p80']:.3f}; ideal {made['ideal_ratio']:.3f}) |"
        )

    seconds = data["seconds"]
    return "\n".join(
        [
            f"SmolLM2-135M-Instruct, {data['share_of_blocks']:.2%} of its decoder blocks "
            f"({data['share_of_parameters']:.2%} of all parameters) left by adapt-pruner, no training.",
            "",
            "| | dense | pruned | pruned/dense |",
            "|---|---|---|---|",
            f"| parameters, M | {size('parameters', 1e6)}",
            f"| weight files, MiB | {size('file_bytes', 2**20)}",
            f"| peak memory, MiB | {size('peak_bytes', 2**20)}",
            f"| KV cache a token, KiB | {size('kv_bytes_per_token', 2**10)}",
            f"| first token (prompt of {data['speed']['config']['prompt']}), ms | {timing('ttft')}",
            f"| each further token, ms | {timing('tpot')}",
            f"| perplexity ({result['text']}, {result['tokens_predicted']:,} tokens, windows of {result['length']}) | "
            f"{result['baseline_perplexity']:.2f} | {result['perplexity']:.2f} | "
            f"{result['perplexity'] / result['baseline_perplexity']:.3f} |",
            f"| same most likely token | | {result['agreement']:.1%} | |",
            f"| KL(dense to pruned), nats a token | | {result['kl']:.3f} | |",
            "",
            f"FFN widths by layer (1536 in the dense model): {', '.join(map(str, data['widths']))}.",
            f"Measured on {machine['cpu']}, {machine['threads']} threads, {data['speed']['dtype']}, torch "
            f"{machine['torch']}, transformers {machine['transformers']}. Seconds: "
            + ", ".join(f"{name} {value}" for name, value in seconds.items())
            + ".",
            "",
        ]
    )
