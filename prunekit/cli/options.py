"""Options that several commands share, and how they become configs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunekit.cli.common import note
from prunekit.errors import PrunekitError
from prunekit.plan.recipe import DEFAULT, Recipe, parse_setting, put_on_top, read_recipe, without_effect

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
    str | None,
    typer.Option(
        "--calib-field",
        "--field",
        help="The field or column of the rows that holds the text or the chat; chats are also found under their usual "
        "names (messages, prompt with completion, ...).",
        show_default="text",
        rich_help_panel=_TEXT,
    ),
]
CalibSplit = Annotated[str | None, typer.Option(help="Dataset split.", show_default="train", rich_help_panel=_TEXT)]
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
    str | None,
    typer.Option(
        "--method",
        show_default="prunekit",
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
RecipeSeed = Annotated[int | None, typer.Option("--seed", help="Seed of every random choice.", show_default="0")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting of the method, such as steps=20; repeatable. `prunekit methods` lists them.",
        show_default=False,
        rich_help_panel=_METHOD,
    ),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        help="A JSON file of settings, or a plan: its own are taken. Options come on top.",
        rich_help_panel=_METHOD,
    ),
]


def recipe_of(method: str | None, file: Path | None, settings: list[str] | None, options: dict[str, object]) -> Recipe:
    """The recipe in ``file``, or the method's, with the ``options`` that were given and each of --set on top.

    An option without effect is told and left out: scripts give several methods the same ones. Raises PrunekitError
    where something is said twice or unknown, or a --set has no effect.
    """
    told = {name: value for name, value in options.items() if value is not None}
    given = [*told]
    for text in settings or ():
        name, value = parse_setting(text)
        if name in told:
            raise PrunekitError(f"{name} is said twice, the second time with --set {text}; leave one out.")
        told[name] = value
    base = read_recipe(file) if file else {}
    named = str(base.pop("method", DEFAULT))
    if file and method is not None and method != named:
        raise PrunekitError(f"The recipe {file} is one of {named}, so leave out --method {method}, or --recipe.")
    for name in without_effect(method or named, put_on_top(base, told)):
        if name in given:
            note(f"{name} has no effect on {method or named} and is left out.")
            del told[name]
    return Recipe.of(method or named, **put_on_top(base, told))
