"""``prunekit generate`` on a tiny pruned checkpoint: its answers, its input, and what it refuses."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prunekit.cli import main
from prunekit.models.source import load_model, load_tokenizer, resolve
from tests.support.command import QUICK, SENTENCE, Command, save_tiny, write_text

NEW = 6


pytestmark = pytest.mark.usefixtures("single_threaded")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("generate")
    arguments = ["prune", str(save_tiny(place / "model")), "-o", str(place / "pruned"), "--blocks", "0.7"]
    arguments += ["--method", "adapt-pruner"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["prunekit", *arguments, "--calib", str(write_text(place / "text.txt")), *QUICK])
        main()
    return place / "pruned"


def piped(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: False))


def wanted(model: Path, prompt: str) -> tuple[list[int], list[int]]:
    """Tokens of the prompt, and what transformers' own generate adds to them."""
    source = resolve(str(model))
    ids = load_tokenizer(source)(prompt)["input_ids"]
    loaded: Any = load_model(source, device="cpu")
    with torch.no_grad():
        made = loaded.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    return ids, made[0, len(ids) :].tolist()


def generate(command: Command, model: Path, *arguments: object) -> Any:
    return command("generate", model, "--device", "cpu", "--max-new-tokens", NEW, *arguments)


def test_json(command: Command, pruned: Path) -> None:
    prompts = [SENTENCE, "The quick brown fox"]
    made = generate(command, pruned, "--prompt", prompts[0], "-p", prompts[1], "--json").json
    for prompt, result in zip(prompts, made["results"], strict=True):
        ids, tokens = wanted(pruned, prompt)
        assert (result["prompt"], result["prompt_tokens"], result["tokens"]) == (prompt, len(ids), tokens)
    assert made["ttft_seconds"] > 0 and made["model"]["weights"] == "keep"
    assert {op["provider"] for op in made["model"]["ops"]} == {"torch"}


def test_text_is_streamed_whole_and_the_fallbacks_are_named(command: Command, pruned: Path) -> None:
    ended = generate(command, pruned, "--prompt", SENTENCE)
    tokens = wanted(pruned, SENTENCE)[1]
    assert ended.code == 0
    assert ended.out.startswith(load_tokenizer(resolve(str(pruned))).decode(tokens, skip_special_tokens=True))
    assert "TTFT" in ended.out and "PyTorch computes" in ended.out.replace("\n", " ")


@pytest.mark.parametrize("end", (b"", b"\n", b"\r\n"))
def test_standard_input_without_the_end_of_its_line(
    end: bytes, command: Command, pruned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, b"The quick\nbrown fox" + end)
    assert generate(command, pruned, "--json").json["results"][0]["prompt"] == "The quick\nbrown fox"


def test_sampling_follows_the_seed(command: Command, pruned: Path) -> None:
    def tokens(seed: int) -> Any:
        options = ("--sample", "--temperature", 2, "--top-k", 50, "--top-p", 0.99, "--seed", seed, "--json")
        return generate(command, pruned, "-p", SENTENCE, *options).json["results"][0]["tokens"]

    assert tokens(1) == tokens(1) != tokens(2)


def test_int8(command: Command, pruned: Path) -> None:
    made = generate(command, pruned, "-p", SENTENCE, "--quantize", "int8", "--json").json
    assert made["model"]["weights"] == "int8" and made["results"][0]["tokens"]


@pytest.mark.parametrize(
    "arguments, messages",
    (
        (("-p", ""), ("A prompt is empty", "--prompt")),
        (("-p", "a", "-p", " \n"), ("A prompt is empty",)),
        (("-p", "caf\udce9"), ("not UTF-8",)),
        (("-p", "a", "--max-new-tokens", 0), ("--max-new-tokens must be at least 1",)),
        (("-p", "a", "--top-k", 5), ("add --sample",)),
        (("-p", "a", "--seed", 5), ("add --sample",)),
        (("-p", "a", "--sample", "--temperature", 0), ("temperature must be",)),
        (("-p", "a", "--sample", "--temperature", 1e-40), ("temperature must be",)),
        (("-p", "a", "--sample", "--temperature", "inf"), ("temperature must be",)),
        (("-p", "a", "--sample", "--top-k", 0), ("top_k must be",)),
        (("-p", "a", "--sample", "--top-p", "nan"), ("top_p must be",)),
        (("-p", "a", "--sample", "--seed", -1), ("seed must be",)),
        (("-p", "a", "--sample", "--seed", 1 << 70), ("seed must be",)),
        (("-p", "a", "--quantize", "int3"), ("int3",)),
        (("-p", "a", "--dtype", "float64"), ("no dtype 'float64'",)),
        (("-p", "a", "--device", "tpu"), ("no device 'tpu'",)),
        (("-p", "a", "--chat"), ("no chat template", "leave --chat out")),
        (("-p", "a") * 65, ("1 to 64 sequences", "several calls")),
        (("-p", "a", "--max-new-tokens", 10**12), ("Not enough memory", "--max-new-tokens")),
    ),
)
def test_refusals(arguments: tuple[Any, ...], messages: tuple[str, ...], command: Command, pruned: Path) -> None:
    ended = generate(command, pruned, *arguments)
    assert ended.code == 2 and not ended.out
    assert ended.err.startswith("prunekit: ") and ended.err.count("\n") == 1
    for message in messages:
        assert message in ended.err, ended.err
    assert str(pruned) not in ended.err


@pytest.mark.parametrize("data, message", ((b"", "A prompt is empty"), (b"caf\xe9", "not UTF-8 text (byte 3)")))
def test_standard_input_that_is_no_text(
    data: bytes, message: str, command: Command, pruned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, data)
    ended = generate(command, pruned)
    assert ended.code == 2 and message in ended.err


def test_no_prompt_at_a_terminal(command: Command, pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    ended = generate(command, pruned)
    assert ended.code == 2 and "give one with --prompt" in ended.err


def test_a_prompt_beyond_the_models_positions_is_refused(command: Command, pruned: Path) -> None:
    """A template that adds a million characters would keep the command busy for hours."""
    ended = generate(command, pruned, "--prompt", "The " * 100)
    assert ended.code == 2 and "400 tokens as it is, and the model was made for at most 256; shorten it." in ended.err


def test_a_template_that_makes_far_too_much_is_not_tokenised(
    command: Command, pruned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens take a hundred bytes each, and the template may write 128 MiB."""
    monkeypatch.setattr("prunekit.data.chat_template.chat_template", lambda _: "a template")
    monkeypatch.setattr("prunekit.data.chat_template.render_chats", lambda *_, **__: ["x" * ((1 << 22) + 1)])
    ended = generate(command, pruned, "--prompt", "The", "--chat")
    assert ended.code == 2 and "template makes 4,194,305 characters of a prompt" in ended.err
