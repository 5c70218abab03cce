"""``prunekit generate``: run a model on the fast decode runtime."""

from __future__ import annotations

import sys
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunekit.cli import options as o
from prunekit.cli.common import app, console, print_json, table
from prunekit.cli.long_command import long
from prunekit.errors import PrunekitError
from prunekit.utils.names import readable

if TYPE_CHECKING:
    from prunekit.kernels import Generated, Report

_SAMPLING = "Sampling"
_LONGEST_PROMPT = 1 << 22


class Quantize(str, Enum):
    """What the layers' weights are rounded to; the names are those of ``optimize(weights=...)``."""

    INT8 = "int8"
    INT4 = "int4"


@app.command("generate")
@long
def generate_command(
    model: o.Model,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", help="Text to continue; repeat it for a batch. Default: standard input."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="At most so many new tokens a prompt.")] = 128,
    chat: Annotated[bool, typer.Option("--chat", help="Send each prompt as a user's message.")] = False,
    quantize: Annotated[
        Quantize | None, typer.Option(help="Round the layers' weights to int8 or int4.", show_default=False)
    ] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Draw tokens.", rich_help_panel=_SAMPLING)] = False,
    temperature: Annotated[float, typer.Option(help="Divides the logits.", rich_help_panel=_SAMPLING)] = 1.0,
    top_k: Annotated[
        int | None, typer.Option(help="Draw from the k likeliest.", show_default=False, rich_help_panel=_SAMPLING)
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Draw from the likeliest that add up to p.", show_default=False, rich_help_panel=_SAMPLING),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help=f"{o.SEED}: the draws.", show_default=False, rich_help_panel=_SAMPLING)
    ] = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    as_json: o.Json = False,
) -> None:
    """Continue prompts on the decode runtime: packed weights, Triton kernels and a CUDA graph where there is a GPU."""
    from prunekit.kernels.runtime.sampling import Sampling

    if max_new_tokens < 1:
        raise PrunekitError(f"--max-new-tokens must be at least 1, got {max_new_tokens}.")
    if not sample and (temperature != 1.0 or top_k is not None or top_p is not None or seed is not None):
        raise PrunekitError("--temperature, --top-k, --top-p and --seed draw tokens; add --sample.")
    Sampling(temperature, top_k, top_p, seed)
    texts = prompt or [_standard_input()]
    if any(not text.strip() for text in texts):
        raise PrunekitError("A prompt is empty; give some text with --prompt or on standard input.")
    if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
        raise PrunekitError("A prompt holds bytes that are not UTF-8 text; convert it to UTF-8.")

    from prunekit.kernels import generate, optimize, report
    from prunekit.models.source import load_model, load_tokenizer, resolve

    source = resolve(model, revision=revision)
    tokenizer = load_tokenizer(source)
    ids = _encode(tokenizer, texts, chat)
    _check_lengths(ids, getattr(source.config, "max_position_embeddings", None), chat)
    fast = optimize(load_model(source, dtype=dtype, device=device), weights=quantize.value if quantize else "keep")
    streamer = _Streamer(tokenizer) if len(texts) == 1 and not as_json else None
    made = generate(
        fast,
        ids,
        max_new_tokens=max_new_tokens,
        do_sample=sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        on_tokens=streamer,
    )
    continuations = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in made.sequences]
    if as_json:
        print_json(
            {
                "results": [
                    {"prompt": text, "prompt_tokens": len(prompt_ids), "tokens": tokens, "text": continuation}
                    for text, prompt_ids, tokens, continuation in zip(
                        texts, ids, made.sequences, continuations, strict=True
                    )
                ],
                "setup_seconds": made.setup_seconds,
                "ttft_seconds": made.ttft_seconds,
                "tpot_seconds": made.tpot_seconds,
                "tokens_per_second": made.tokens_per_second,
                "model": report(fast).to_dict(),
            }
        )
        return
    if streamer is not None:
        streamer.end()
    else:
        for text, continuation in zip(texts, continuations, strict=True):
            print(readable(f"{text}{continuation}\n"))  # noqa: T201
    _print(made, report(fast))


def _standard_input() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        raise PrunekitError("There is no prompt; give one with --prompt, or pipe text into the command.")
    try:
        data = sys.stdin.buffer.read(_LONGEST_PROMPT + 1)
        if len(data) > _LONGEST_PROMPT:
            raise PrunekitError(
                f"Standard input holds more than {_LONGEST_PROMPT:,} bytes, and no model takes so long a prompt; "
                "shorten it."
            )
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PrunekitError(f"Standard input is not UTF-8 text (byte {error.start}); convert it to UTF-8.") from None
    return text.removesuffix("\n").removesuffix("\r")  # the end of a line, not of the text to continue


def _encode(tokenizer: Any, texts: list[str], chat: bool) -> list[list[int]]:
    from prunekit.data.chat_template import chat_template, render_chats
    from prunekit.data.tokenised import encode

    if chat and chat_template(tokenizer) is None:
        raise PrunekitError("This model's tokenizer has no chat template; leave --chat out.")
    if chat:
        rendered = render_chats(tokenizer, [[{"role": "user", "content": text}] for text in texts], generation=True)
        for each in rendered:
            if isinstance(each, PrunekitError):
                raise PrunekitError(f"{str(each).rstrip('.')}; leave --chat out, or mend the template.")
        texts = [str(each) for each in rendered]
        longest = max(map(len, texts))
        if longest > _LONGEST_PROMPT:
            raise PrunekitError(
                f"This model's chat template makes {longest:,} characters of a prompt, and no model takes so long a "
                "prompt; leave --chat out, or mend the template."
            )
    return encode(tokenizer, texts, special=not chat)


def _check_lengths(ids: list[list[int]], most: int | None, chat: bool) -> None:
    """A prompt that no answer can follow would only take long: its cost grows with the square of its length."""
    longest = max(map(len, ids))
    if most is not None and longest > most:
        made = "with what the chat template adds to it" if chat else "as it is"
        raise PrunekitError(
            f"A prompt has {longest:,} tokens {made}, and the model was made for at most {most:,}; shorten it."
        )


class _Streamer:
    """Prints text as its tokens come. A character may take several tokens, so what is decoded is held back until it
    is whole."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        self.shown = 0

    def __call__(self, tokens: list[int | None]) -> None:
        self.tokens += [token for token in tokens if token is not None]
        text = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
        if not text.endswith("\ufffd"):
            print(readable(text[self.shown :]), end="", flush=True)  # noqa: T201
            self.shown = len(text)

    def end(self) -> None:
        print(readable(self.tokenizer.decode(self.tokens, skip_special_tokens=True)[self.shown :]))  # noqa: T201


def _print(made: Generated, report: Report) -> None:
    speed = table("Speed", "quantity", "value")
    speed.add_row("time to first token (TTFT)", f"{1e3 * made.ttft_seconds:,.1f} ms")
    if made.tpot_seconds is not None:
        speed.add_row("time per output token (TPOT)", f"{1e3 * made.tpot_seconds:,.2f} ms")
        speed.add_row("tokens a second, all prompts", f"{made.tokens_per_second:,.1f}")
    speed.add_row("weights", f"{report.weight_bytes / 2**20:,.1f} MiB + {report.extra_share:.2%} layout")
    console().print(speed)
    reasons: dict[str, list[str]] = {}
    for op in report.fallbacks:
        names = reasons.setdefault(str(op.reason), [])
        if op.op not in names:
            names.append(op.op)
    for reason, ops in reasons.items():
        console().print(f"PyTorch computes {', '.join(ops)}: {reason}.")
