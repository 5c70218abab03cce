"""Pools of requests with their scores: prompts of a text or of questions, answers by the deployed model, as it is or
with a fault. Each is made once and kept in a folder."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunekit.data.chat_template import render_chats
from prunekit.models.runner import TorchRunner
from prunekit.models.source import Source, load_model, load_tokenizer
from prunekit.monitoring.scoring.contexts import Context
from prunekit.monitoring.scoring.dense import KeptStates
from prunekit.monitoring.scoring.deployed import score
from prunekit.monitoring.scoring.scores import RequestScore, Shadow
from prunekit.utils.files.atomic import rewrite_bytes, rewrite_text

PROMPT, ANSWER, BATCH = 30, 15, 40
# Contexts whose hidden states of the dense model are in memory together.
CHUNK = 640
# What the wrong template makes of a question: another family's words.
WRONG = "[INST] {question} [/INST]"


@dataclass(frozen=True)
class Pool:
    """``count`` requests, from number ``first`` on of a text's blocks or of "questions" in an order drawn once: answers
    of a model with the fault ``served``, scored by one with the fault ``scored``. ``others`` more requests, the next
    ones, have no scores. ``template`` is how questions reach the server. With ``own`` answers are not a model's: the
    text goes on."""

    name: str
    of: str
    count: int
    first: int = 0
    others: int = 0
    served: str | None = None
    scored: str | None = None
    template: str = "right"
    own: bool = False


@dataclass(frozen=True)
class Models:
    """The two models and the tokenizer that they share."""

    deployed: Any
    dense: Any
    tokenizer: Any

    @classmethod
    def load(cls, deployed: Source, dense: Source, dtype: str) -> Models:
        both = (load_model(each, dtype=dtype, device="cpu") for each in (deployed, dense))
        return cls(*both, load_tokenizer(deployed))


def blocks(file: Path, tokenizer: Any) -> list[list[int]]:
    """A text's blocks of PROMPT + ANSWER tokens, one behind the other, in an order drawn once."""
    text = file.read_text(encoding="utf-8", errors="replace")
    ids, size = tokenizer(text, add_special_tokens=False)["input_ids"], PROMPT + ANSWER
    return [ids[place * size : (place + 1) * size] for place in drawn(len(ids) // size)]


def questions(file: Path) -> list[str]:
    """Questions of a benchmark, in an order drawn once."""
    with gzip.open(file, "rt", encoding="utf-8") as handle:
        rows = [json.loads(line)["question"] for line in handle]
    rows = [row for row in rows if 40 < len(row) < 160]
    return [rows[place] for place in drawn(len(rows))]


def drawn(count: int) -> list[int]:
    """The order of ``count`` rows."""
    order: list[int] = np.random.default_rng(0).permutation(count).tolist()
    return order


def chats(asked: list[str], tokenizer: Any) -> list[list[int]]:
    """Questions through the model's own template."""
    made = render_chats(tokenizer, [[{"role": "user", "content": each}] for each in asked], generation=True)
    return [tokenizer(str(each), add_special_tokens=False)["input_ids"] for each in made]


@contextmanager
def fault(model: Any, name: str | None) -> Iterator[None]:
    """``model`` with a fault while the block runs: "noise X" adds noise of X standard deviations to one layer's
    down_proj, "head" sets one attention head's output to zero."""
    if name is None:
        yield
        return
    layers = model.get_submodule("model.layers")
    layer = layers[len(layers) // 2]
    kind, _, size = name.partition(" ")
    weight = layer.mlp.down_proj.weight if kind == "noise" else layer.self_attn.o_proj.weight
    before = weight.detach().clone()
    with torch.no_grad():
        if kind == "noise":
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
            weight += (float(size) * weight.float().std() * noise).to(weight.dtype)
        else:
            weight[:, : layer.self_attn.head_dim] = 0
    try:
        yield
    finally:
        weight.data.copy_(before)


def answers(model: Any, prompts: list[list[int]], tell: Callable[[str], None]) -> list[list[int]]:
    """ANSWER greedy tokens after each prompt."""
    runner, made = TorchRunner(model), []
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    rows: dict[int, list[int]] = {}
    for at in range(0, len(order), BATCH):
        part = order[at : at + BATCH]
        tokens = runner.together([np.array(prompts[place]) for place in part], ANSWER)
        rows.update((place, row.tolist()) for place, row in zip(part, tokens, strict=True))
        tell(f"{at + len(part)}/{len(order)} answers")
    made = [rows[place] for place in range(len(prompts))]
    return made


def make(pool: Pool, models: Models, texts: dict[str, Path], folder: Path, tell: Callable[[str], None]) -> None:
    """Write the pool's requests and scores into ``folder``, where they are not there yet."""
    if (folder / f"{pool.name}.json").exists():
        return
    part = slice(pool.first, pool.first + pool.count + pool.others)
    if pool.of == "questions":
        asked = questions(texts["questions"])[part]
        prompts = chats(asked, models.tokenizer)
        seen = prompts
        if pool.template != "right":
            wrong = [WRONG.format(question=each) for each in asked]
            seen = [models.tokenizer(each, add_special_tokens=False)["input_ids"] for each in wrong]
    else:
        rows = blocks(texts[pool.of], models.tokenizer)[part]
        seen = prompts = [each[:PROMPT] for each in rows]
    if len(prompts) < pool.count + pool.others:
        raise SystemExit(f"{texts[pool.of]} is too short for {pool.name}: it has {len(prompts):,} requests.")
    if pool.own:
        made = [each[PROMPT:] for each in rows]
    else:
        with fault(models.deployed, pool.served):
            made = answers(models.deployed, seen, tell)
    contexts = [
        Context(f"{pool.name}-{place}", (*prompt, *answer), len(prompt), True)
        for place, (prompt, answer) in enumerate(zip(prompts[: pool.count], made, strict=False))
    ]
    # Of about one length, so that little is padded.
    contexts.sort(key=lambda each: len(each.ids))
    scores: list[RequestScore] = []
    for at in range(0, len(contexts), CHUNK):
        chunk, said = contexts[at : at + CHUNK], KeptStates("dense")
        said.read(models.dense, chunk, 8)
        with fault(models.deployed, pool.scored):
            scores += score(models.deployed, chunk, said, batch=8)
        tell(f"{len(scores)}/{len(contexts)} scored")
    scores.sort(key=lambda each: int(each.id.rpartition("-")[2]))
    rewrite_bytes(folder / f"{pool.name}.npy", _bytes(np.stack([each.feature for each in scores])))
    kept = [asdict(replace(each, feature=None)) for each in scores]
    data = {"pool": asdict(pool), "prompts": prompts, "answers": made, "scores": kept}
    rewrite_text(folder / f"{pool.name}.json", json.dumps(data))


def _bytes(array: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def read(folder: Path, name: str) -> tuple[dict[str, Any], list[RequestScore]]:
    """What :func:`make` wrote: its data, and the scores."""
    data = json.loads((folder / f"{name}.json").read_text())
    features = np.load(folder / f"{name}.npy")
    scores = [
        RequestScore(**{**row, "feature": feature, "shadow": Shadow(**row["shadow"])})
        for row, feature in zip(data["scores"], features, strict=True)
    ]
    return data, scores
