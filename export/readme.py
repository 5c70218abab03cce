"""The README of an export folder: what it is, how to run it, how it was checked, where it came from."""

from __future__ import annotations

from prunekit.checkpoint.card import card_head, licence_text, plain
from prunekit.export.edge.script import SCRIPT, bench_script
from prunekit.export.quality import TextQuality
from prunekit.export.target import Job, Target, Written
from prunekit.models.origin import Origin
from prunekit.utils.provenance import model_label


def export_readme(
    job: Job, target: Target, written: Written, origin: Origin, quality: TextQuality | None, parity: str, manifest: str
) -> str:
    """Markdown with a model card's head. ``parity`` and ``manifest`` are names of files beside it."""
    shape = job.source.shape
    name = model_label(job.source.name)
    notes = "".join(f"- {note}\n" for note in written.notes)
    head = card_head(origin, library=target.library, tags=("prunekit", target.name), relation="quantized")
    return f"""{head}
# {plain(name)} for {target.name}

{target.summary} Written by prunekit in {job.dtype}: {shape.parameters:,} parameters, {shape.num_hidden_layers} layers
whose widths may differ. `{parity}` holds the comparison with PyTorch, `{manifest}` where the model came from and the
files' hashes.

{target.usage(job).strip()}

{target.batches}

{_timing(target)}
{chr(10) + notes if notes else ""}{_on_text(quality, job.dtype) if quality else ""}
{licence_text(name, origin, f"prunekit converted it to {target.name}, in {job.dtype}.")}"""


def _timing(target: Target) -> str:
    if bench_script(target.name) is None:
        return "`trtexec` itself prints how long an engine takes; there is no `bench.py` for it."
    return (
        f"`python {SCRIPT}` times it on the machine at hand: the first token, each further one, peak memory, and "
        "whether other processes disturbed it. It needs this runtime and numpy, and writes `bench.json`. "
        f"`python {SCRIPT} --help` lists its options."
    )


def _on_text(quality: TextQuality, dtype: str) -> str:
    names = {"dense": "dense, float32", "pruned": "this checkpoint, float32", "exported": f"this export, {dtype}"}
    # That no dense model was named is nothing for those who read this.
    shown = [(name, loss) for name, loss in quality.losses if loss.perplexity is not None or name == "exported"]
    rows = "".join(f"| {names[name]} | {plain(loss.said)} |\n" for name, loss in shown)
    return f"""
Perplexity on the first {quality.tokens:,} tokens of {plain(quality.text)}, in windows of {quality.window}:

| model | perplexity |
|---|---|
{rows}"""
