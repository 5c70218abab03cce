"""Options that several commands share, and how they become configs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunekit.errors import PrunekitError

if TYPE_CHECKING:
    from prunekit.data.calibration import CalibrationConfig
    from prunekit.plan.goals import Target
    from prunekit.plan.methods import Method
    from prunekit.plan.rounding import Rounding
    from prunekit.recovery.refit import RefitConfig
    from prunekit.recovery.rescale import RescaleConfig

_TARGET, _TEXT, _METHOD, _WIDTHS = "Target (at least one; all are met)", "Calibration text", "Method", "Widths"
_REFIT = "Refit"

Params = Annotated[
    str | None,
    typer.Option(help="Keep this share (0.8) or number (1.0B) of all parameters.", rich_help_panel=_TARGET),
]
Blocks = Annotated[
    str | None,
    typer.Option(help="Keep this share (0.79) of the decoder blocks' parameters.", rich_help_panel=_TARGET),
]
Weights = Annotated[str | None, typer.Option(help="Keep at most this much in weights (4GiB).", rich_help_panel=_TARGET)]
Flops = Annotated[
    str | None,
    typer.Option(
        help="Keep this share (0.75) or number (200M) of FLOPs a token; this, --kv-cache and --latency are for "
        "--allocate optimal.",
        rich_help_panel=_TARGET,
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context", help="--flops: earlier tokens that a token attends to.", show_default="0", rich_help_panel=_TARGET
    ),
]
KvCache = Annotated[
    str | None,
    typer.Option(help="Keep this share (0.5) or size (12KB) of the KV cache of a token.", rich_help_panel=_TARGET),
]
Latency = Annotated[
    str | None,
    typer.Option(help="Keep this share (0.7) or time (12ms) of the predicted latency.", rich_help_panel=_TARGET),
]
LatencyTable = Annotated[
    Path | None,
    typer.Option(help="What --latency is predicted by: see prunekit latency-table.", rich_help_panel=_TARGET),
]
Calib = Annotated[
    str | None,
    typer.Option(
        help="File of text, or of rows of texts or chats (.jsonl, .json, .csv, .tsv, .parquet; .gz too), Hugging "
        "Face dataset id (id:config), wikitext, builtin, self (what the "
        "model writes itself), or a mix such as notes.txt:0.5,self:0.5 (default: the method's).",
        rich_help_panel=_TEXT,
    ),
]
CalibField = Annotated[
    str,
    typer.Option(
        "--calib-field",
        "--field",
        help="The field or column of the rows that holds the text or the chat; chats are also found under their usual "
        "names (messages, prompt with completion, ...).",
        rich_help_panel=_TEXT,
    ),
]
CalibSplit = Annotated[str, typer.Option(help="Dataset split.", rich_help_panel=_TEXT)]
Sequences = Annotated[
    int | None, typer.Option(help="Sequences a scoring pass (default: the method's).", rich_help_panel=_TEXT)
]
Length = Annotated[int | None, typer.Option(help="Tokens a sequence (default: the method's).", rich_help_panel=_TEXT)]
BatchSize = Annotated[
    int | None,
    typer.Option(
        help="Sequences a forward pass (default: the method's): lower it where memory is short.", rich_help_panel=_TEXT
    ),
]
Checkpointing = Annotated[
    bool | None,
    typer.Option(
        "--gradient-checkpointing/--no-gradient-checkpointing",
        help="Recompute activations instead of keeping them (default: where memory is short).",
        rich_help_panel=_TEXT,
    ),
]
MethodName = Annotated[
    str,
    typer.Option(
        "--method",
        help="prunekit, adapt-pruner, llm-pruner, flap, magnitude, wanda-sp, minitron, random, fisher-global, "
        "shortgpt or slicegpt (prune only: narrows hidden states by one rotation, where the paper has one a layer).",
        rich_help_panel=_METHOD,
    ),
]
ImportanceName = Annotated[
    str | None,
    typer.Option(
        "--importance",
        help="Instead of the method's: taylor, taylor2, fisher, magnitude, magnitude-l1, wanda, flap, activation or "
        "random.",
        rich_help_panel=_METHOD,
    ),
]
LayerImportanceName = Annotated[
    str | None,
    typer.Option(
        "--layer-importance",
        help="Instead of the method's: cosine, euclidean, manhattan or loss.",
        rich_help_panel=_METHOD,
    ),
]
AllocateName = Annotated[
    str | None,
    typer.Option(
        "--allocate",
        help="Instead of the method's: uniform, adapt, global, optimal (least loss by measured curves) or drop.",
        rich_help_panel=_METHOD,
    ),
]
Units = Annotated[
    str | None,
    typer.Option(
        "--prune",
        help="What may go: ffn (channels), kv (whole KV groups), query (query heads, alike in every group); with "
        "--allocate optimal also attention-layer and ffn-layer (a layer's whole attention, whole FFN), each where that "
        "costs least (default: the method's).",
        rich_help_panel=_METHOD,
    ),
]
Steps = Annotated[int | None, typer.Option(help="adapt: T, a step takes 1/T of each layer.", rich_help_panel=_METHOD)]
Amplitude = Annotated[
    float | None, typer.Option(help="adapt: A, how far layer importance shifts a step.", rich_help_panel=_METHOD)
]
AttentionRatio = Annotated[
    float | None,
    typer.Option(
        help="adapt, uniform: how fast attention shrinks beside the FFNs (1 alike, 0 never).", rich_help_panel=_METHOD
    ),
]
Refit = Annotated[
    bool | None,
    typer.Option(
        "--refit/--no-refit",
        help="Solve what is left of every layer anew, in closed form (default: the method's).",
        rich_help_panel=_REFIT,
    ),
]
Rescale = Annotated[
    bool | None,
    typer.Option(
        "--rescale/--no-rescale",
        help="After the refit, tune a factor of every projection's inputs and outputs by gradient descent on the "
        "distance from the dense model (default: the method's).",
        rich_help_panel=_REFIT,
    ),
]
Ridge = Annotated[
    float | None,
    typer.Option(help="How strongly weights are held to their old values.", show_default="0.1", rich_help_panel=_REFIT),
]
FfnMultiple = Annotated[
    int | None,
    typer.Option(
        help="FFN widths are multiples of this; 1 allows irregular ones.", show_default="64", rich_help_panel=_WIDTHS
    ),
]
MinFfn = Annotated[
    int | None, typer.Option(help="No FFN becomes narrower than this.", show_default="1", rich_help_panel=_WIDTHS)
]
RoundFor = Annotated[
    str | None,
    typer.Option("--round-for", help="Preset of multiples: gpu, gguf or tp=N.", rich_help_panel=_WIDTHS),
]
ProtectLayers = Annotated[
    str | None,
    typer.Option(
        help="Layers to leave whole, such as 0,1,29 or 0-2, or none (default: llm-pruner leaves the first eighth and "
        "the last sixteenth whole, other methods none).",
        rich_help_panel=_WIDTHS,
    ),
]


def parse_layers(text: str | None) -> frozenset[int]:
    """``"0,2-4"`` → {0, 2, 3, 4}, ``"none"`` → {}. Raises PrunekitError for anything else."""
    if (text or "").strip() == "none":
        return frozenset()
    layers: set[int] = set()
    for run in (text or "").replace(" ", "").split(","):
        if not run:
            continue
        first, _, last = run.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal() or len(first + last) > 12:
            raise PrunekitError(f"--protect-layers takes layer numbers such as 0,1,29 or 0-2, not {text!r}.")
        start, stop = int(first), int(last or first)
        if stop < start or stop > 4096:
            raise PrunekitError(f"--protect-layers {text!r}: a range runs from a lower layer to a higher one.")
        layers.update(range(start, stop + 1))
    return frozenset(layers)


def rounding(round_for: str | None, ffn_multiple: int | None, min_ffn: int | None, head_dim: int) -> Rounding:
    """The preset, with the multiples that were given by hand on top."""
    from dataclasses import replace

    from prunekit.plan.rounding import Rounding, rounding_preset

    base = rounding_preset(round_for, head_dim) if round_for else Rounding()
    given = {"ffn_multiple": ffn_multiple, "min_ffn": min_ffn}
    return replace(base, **{name: value for name, value in given.items() if value is not None})


def method_of(
    name: str,
    importance: str | None,
    layer_importance: str | None,
    allocate: str | None,
    units: str | None,
    steps: int | None,
    amplitude: float | None,
    attention_ratio: float | None,
) -> Method:
    """The preset, with what was given by hand on top; then it is called custom."""
    from dataclasses import replace

    from prunekit.plan.methods import method

    preset = method(name)
    given: dict[str, Any] = {
        "importance": importance,
        "layer_importance": layer_importance,
        "allocation": allocate,
        "steps": steps,
        "amplitude": amplitude,
        "attention_ratio": attention_ratio,
        "units": _names(units),
    }
    changed = {field: value for field, value in given.items() if value is not None and value != getattr(preset, field)}
    if not changed:
        return preset
    told = {"importance", "layer_importance", "allocation", "units"}
    if preset.rotates and told & set(changed):
        raise PrunekitError(
            f"{name} removes no units, so --importance, --layer-importance, --allocate and --prune have no meaning "
            "there; leave them out."
        )
    if preset.rotates:
        return preset
    if "allocation" in changed and preset.layer_importance is None and changed["allocation"] in ("adapt", "drop"):
        changed.setdefault("layer_importance", "cosine")
    if "allocation" in changed:
        # z-scores belong to FLAP's own sorting.
        changed["standardise"] = preset.standardise and changed["allocation"] == "global"
    return replace(preset, name=f"custom (from {preset.name})", **changed)


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(","))


# What least squares and loss curves need; scores are content with the method's own.
_MUCH_TEXT = {"sequences": 128, "length": 512, "batch_size": 8}


def calibration(
    method: Method,
    refit: RefitConfig | None,
    calib: str | None,
    field: str,
    split: str,
    sequences: int | None,
    length: int | None,
    batch_size: int | None,
    seed: int,
) -> CalibrationConfig:
    """What was given by hand, else the method's own."""
    from prunekit.data.calibration import CalibrationConfig

    given = {"sequences": sequences, "length": length, "batch_size": batch_size}
    sizes = {name: getattr(method, name) for name in given}
    if (refit or method.allocation == "optimal") and not method.refit:
        sizes = _MUCH_TEXT
    sizes |= {name: value for name, value in given.items() if value is not None}
    return CalibrationConfig(source=calib or method.calib, seed=seed, field=field, split=split, **sizes)


def refit_of(method: Method, refit: bool | None, ridge: float | None) -> RefitConfig | None:
    """How to refit, None where nothing is. Raises PrunekitError for settings without a refit."""
    from prunekit.recovery.refit import RefitConfig

    wanted = method.refit if refit is None else refit
    if not wanted and ridge is not None:
        raise PrunekitError("--ridge says how to refit, but nothing is refitted; add --refit.")
    if wanted and method.rotates:
        raise PrunekitError(f"{method.name} leaves no projection as it was to be refitted; leave out --refit.")
    if not wanted:
        return None
    return RefitConfig() if ridge is None else RefitConfig(ridge=ridge)


def rescale_of(method: Method, refit: RefitConfig | None, rescale: bool | None) -> RescaleConfig | None:
    """How to rescale, None where nothing is. Raises PrunekitError without a refit."""
    from prunekit.recovery.rescale import RescaleConfig

    wanted = (method.rescale and refit is not None) if rescale is None else rescale
    if wanted and refit is None:
        raise PrunekitError("--rescale tunes what a refit has solved, but nothing is refitted; add --refit.")
    return RescaleConfig() if wanted else None


def target_of(
    params: str | None,
    blocks: str | None,
    weights: str | None,
    flops: str | None,
    context: int | None,
    kv_cache: str | None,
    latency: str | None,
    latency_table: Path | None,
) -> Target:
    """All that was asked for. Refuses missing or senseless targets before a model is looked for."""
    from prunekit.plan.goals import parse_target
    from prunekit.plan.latency_table import LatencyTable

    return parse_target(
        params,
        blocks,
        weights,
        flops=flops,
        context=context,
        kv_cache=kv_cache,
        latency=latency,
        table=LatencyTable.load(latency_table) if latency_table else None,
    )
