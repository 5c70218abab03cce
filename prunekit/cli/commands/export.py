"""``prunekit export``: a checkpoint in the format of a runtime, checked in that runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.padding import Padding
from rich.text import Text

from prunekit.cli import options as o
from prunekit.cli.common import app, console, print_json, table
from prunekit.cli.long_command import long
from prunekit.errors import PrunekitError
from prunekit.utils.files.replacing import EXPORT, PROFILE, local

if TYPE_CHECKING:
    from prunekit.export.export import Exported
    from prunekit.export.parity import Greedy, Parity
    from prunekit.export.quality import TextQuality
    from prunekit.export.target import Options

_SPECIAL = "For some targets"


@app.command("export")
@long
def export_command(
    model: Annotated[
        str | None, typer.Argument(help="A checkpoint: folder, hub id, .gguf file.", show_default=False)
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to", help="The target; --list shows all.", show_default=False, autocompletion=o.complete_target
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="Instead of --to: jetson-orin, server-gpu, cpu or mobile.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=f"{o.OUTPUT}: a folder.", show_default=False)
    ] = None,
    dtype: Annotated[str, typer.Option(help=f"{o.DTYPE}: as --list names it; auto is the first.")] = "auto",
    context_length: Annotated[
        int | None, typer.Option(help="Most tokens of prompt and answer.", show_default=False)
    ] = None,
    pad_ffn: Annotated[
        int | None,
        typer.Option(
            help="Pad every FFN with zero channels to a multiple (default: 32 for gguf, else 1; 256 suits llama.cpp's "
            "K-quants).",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help=f"{o.DEVICE} The result is run and compared there (mps never), and compiled for it; auto is the CPU, "
            "and with --aot a GPU where there is one."
        ),
    ] = "auto",
    verify: Annotated[bool, typer.Option(help="Run the result and compare it with PyTorch.")] = True,
    text: Annotated[
        str | None,
        typer.Option(
            help=f"{o.TEXT}: to measure perplexity on before and after, {o.FILES}, a Hugging Face dataset id, "
            "wikitext, or builtin; its first 2,048 tokens.",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[str | None, typer.Option(help=f"{o.BASELINE}: on --text.", show_default=False)] = None,
    overwrite: o.Overwrite = False,
    revision: o.Revision = None,
    baseline_revision: o.BaselineRevision = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help=f"{o.TRUST}: a tokenizer in the checkpoint.")
    ] = False,
    layout: Annotated[
        str, typer.Option(help=f"{o.LAYOUT}: for hf, per-layer or uniform.", rich_help_panel=_SPECIAL)
    ] = "per-layer",
    tensor_parallel: Annotated[int, typer.Option("--tp", help="vllm: devices.", rich_help_panel=_SPECIAL)] = 1,
    aot: Annotated[
        bool, typer.Option("--aot", help="torch-export: compile with AOTInductor.", rich_help_panel=_SPECIAL)
    ] = False,
    list_targets: Annotated[
        bool, typer.Option("--list", help="Show targets, runtimes, limits; export nothing.")
    ] = False,
    as_json: o.Json = False,
) -> None:
    """Write a checkpoint for a runtime, load it there, and keep it only if it computes what PyTorch computes."""
    if list_targets:
        _list(as_json)
        return
    if model is None:
        raise PrunekitError("Name the checkpoint to export, or say --list to see the targets.")
    if (to is None) == (profile is None):
        raise PrunekitError("Name either a target with --to (--list shows them) or a device with --profile.")
    if output is None:
        raise PrunekitError("Name the folder to write with --output.")

    from prunekit.export.target import Options

    options = Options(dtype, context_length, tensor_parallel, aot, layout, pad_ffn, trust_remote_code, device)  # type: ignore[arg-type]
    if baseline is not None and text is None:
        raise PrunekitError("--baseline is measured on a text; name one with --text.")
    if profile is not None:
        if text is not None:
            raise PrunekitError("--text is for one target; name it with --to, or leave --text out.")
        _export_profile(model, revision, profile, output, options, overwrite, verify, as_json)
        return
    assert to is not None

    from prunekit.export.device import kind_of
    from prunekit.export.export import check_packages, chosen_device, export
    from prunekit.export.registry import target
    from prunekit.models.source import resolve
    from prunekit.utils.files.atomic import check_output_folder

    check_output_folder(output, overwrite, kind=EXPORT, inputs=local(model, text, baseline))
    check_packages(target(to), verify, kind_of(device))
    chosen_device(target(to), options)
    dense = None if baseline is None else resolve(baseline, revision=baseline_revision)
    source = resolve(model, revision=revision)
    made = export(source, to, output, options, overwrite=overwrite, verify=verify, text=text, dense=dense)
    if as_json:
        print_json(made.to_dict())
    else:
        _print(made)


def _export_profile(
    model: str,
    revision: str | None,
    name: str,
    output: Path,
    options: Options,
    overwrite: bool,
    verify: bool,
    as_json: bool,
) -> None:
    from prunekit.export.profiles import export_profile, profile_named
    from prunekit.models.source import resolve
    from prunekit.utils.files.atomic import check_output_folder

    profile = profile_named(name)
    if options.dtype != "auto" or options.pad_ffn is not None:
        raise PrunekitError("A profile chooses dtype and padding itself; leave --dtype and --pad-ffn out.")
    check_output_folder(output, overwrite, kind=PROFILE, inputs=local(model))
    bundle = export_profile(
        resolve(model, revision=revision), profile, output, options, overwrite=overwrite, verify=verify
    )
    if as_json:
        print_json(bundle.to_dict())
        return
    shown = table(f"{output} for {profile.name}", "folder", "MiB", "verified", "why")
    shown.columns[-1].justify = "left"
    for choice, made in bundle.exports:
        verified = "yes" if made.parity else "no"
        shown.add_row(choice.folder, f"{made.file_bytes / 2**20:,.1f}", verified, choice.why)
    console().print(shown)
    for choice, reason in bundle.left_out:
        console().print(f"Left out {choice.folder}: {reason}")


def _list(as_json: bool) -> None:
    from prunekit.export.registry import TARGET_NAMES, target

    targets = [target(name) for name in TARGET_NAMES]
    if as_json:
        print_json({"targets": [_facts(each) for each in targets]})
        return
    out = console()
    for each in targets:
        facts = _facts(each)
        here = [f"{name} {version or 'MISSING'}" for name, version in facts["packages"].items()]
        out.print(Text(each.name, "bold"), each.summary)
        out.print(Padding(f"dtypes: {', '.join(each.dtypes)}", (0, 0, 0, 2)))
        out.print(Padding(f"here: {', '.join(here)}", (0, 0, 0, 2)))
        out.print(Padding(f"devices: {_said(facts['devices'])}", (0, 0, 0, 2)))
        for how in facts["install"]:
            out.print(Padding(f"to get it: {how}", (0, 0, 0, 2)))
        for limit in each.limits:
            out.print(Padding(f"- {limit}", (0, 0, 0, 2)))
        out.print()


def _said(devices: dict[str, str | None]) -> str:
    """ "cpu; cuda, not here: why not"."""
    return "; ".join(f"{kind}, not here: {why}" if why else kind for kind, why in devices.items())


def _facts(target: Any) -> dict[str, Any]:
    from prunekit.export.device import devices_here

    packages = (*target.writes_with, *target.runs_with)
    missing = target.missing(packages)
    return {
        "name": target.name,
        "summary": target.summary,
        "dtypes": list(target.dtypes),
        "devices": devices_here(target),
        "packages": {each.package: each.version for each in packages},
        "ready": not missing,
        "install": list(dict.fromkeys(each.how() for each in missing)),
        "unverified": target.unverified,
        "limits": list(target.limits),
    }


def _print(made: Exported) -> None:
    out = console()
    out.print(f"{made.path}: {made.target}, {made.dtype}, {made.device}, {made.file_bytes / 2**20:,.1f} MiB")
    for note in made.written.notes:
        out.print(f"Note: {note}")
    if made.parity is None:
        out.print(f"Not verified: {made.unverified}.")
    else:
        _print_parity(made.parity)
    if made.quality is not None:
        _print_quality(made.quality, made.dtype)


def _print_quality(quality: TextQuality, dtype: str) -> None:
    names = {"dense": "dense, float32", "pruned": "the checkpoint, float32", "exported": f"the export, {dtype}"}
    shown = table(f"On {quality.text}, {quality.tokens:,} tokens in windows of {quality.window}", "", "perplexity")
    for name, loss in quality.losses:
        shown.add_row(names[name], loss.said)
    console().print(shown)


def _print_parity(parity: Parity) -> None:
    out = console()
    shown = table(
        "Compared with PyTorch",
        *("", "found", "allowed"),
        caption="Tied: another token, but a near tie: PyTorch's logits of both are nearer than the tolerance.",
    )
    shown.add_row(
        f"logits, {parity.tokens} tokens, rms", f"{parity.logits.rms_relative:.2g}", f"{parity.tolerance.rms:g}"
    )
    shown.add_row("logits, largest", f"{parity.logits.largest_relative:.2g}", f"{parity.tolerance.largest:g}")
    shown.add_row("through the KV cache, rms", f"{parity.cached.rms_relative:.2g}", f"{parity.tolerance.rms:g}")
    shown.add_row("greedy tokens", _counted(parity.greedy), "no other")
    if parity.together is not None:
        shown.add_row("the same, prompts in one batch", _counted(parity.together), "no other")
    shown.add_row("likeliest token, all positions", _counted(parity.likeliest), "")
    shown.add_row(
        "perplexity, PyTorch and here", f"{parity.perplexity_reference:.3f}, {parity.perplexity_runtime:.3f}", ""
    )
    if parity.weights is not None:
        shown.add_row("stored weights, worst row", f"{parity.weights[0]:.2g}", f"{parity.tolerance.weight:g}")
        shown.add_row("likeliest token as before rounding", f"{parity.agreement:.1%}", "")
    out.print(shown)
    if left := parity.runtime.get("on_cpu"):
        nodes = sum(parity.runtime["nodes"].values())
        out.print(
            f"{sum(left.values())} of {nodes} nodes stay on the CPU: "
            f"{', '.join(f'{count} {kind}' for kind, count in left.items())}."
        )


def _counted(found: Greedy) -> str:
    """ "43: 41 equal, 2 tied, 0 other", which add up."""
    return f"{found.compared}: {found.equal} equal, {found.near_ties} tied, {found.wrong} other"
