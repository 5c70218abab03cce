"""Running what TorchForward became: a graph whose KV cache goes in and comes out as tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.export.target import CPU, Job
from prunekit.models.runner import Array, TensorRunner
from prunekit.plan.shape import ModelShape
from prunekit.utils.files.atomic import read_json

MODEL_JSON = "model.json"
TORCH_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def write_model_json(job: Job, folder: Path, dtype: str, **more: Any) -> frozenset[str]:
    """What a program must know to make the first, empty cache, to end a text, and to draw tokens as the checkpoint
    asks. ``dtype`` is a name in torch. Returns what is told of the checkpoint's generation settings."""
    shape, generation = job.source.shape, job.generation
    facts = {
        "dtype": dtype,
        "vocab_size": shape.vocab_size,
        "head_dim": shape.head_dim,
        "key_value_heads": [layer.num_key_value_heads for layer in shape.layers],
        "bos_token_id": generation.begin,
        "eos_token_ids": list(generation.ends),
        "pad_token_id": generation.pad,
        "sampling": dict(generation.sampling),
        "chat_templates": dict(generation.templates),
        **more,
    }
    (folder / MODEL_JSON).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return generation.everything


def read_model_json(folder: Path) -> dict[str, Any]:
    """Raises PrunekitError where it is missing or holds something else."""
    facts = read_json(folder / MODEL_JSON, "description of the export")
    if not isinstance(facts, dict) or not {"dtype", "vocab_size", "head_dim", "key_value_heads"} <= set(facts):
        raise PrunekitError(f"{folder / MODEL_JSON} is damaged; export the model again.")
    return facts


# RoPE whose frequencies change once a text is longer than what the model was trained on.
_CHANGING_ROPE = ("dynamic", "longrope")


def check_rope(job: Job, longest: int | None = None) -> None:
    """Raises PrunekitError where RoPE changes with the length of the text and texts of ``longest`` tokens (None: of any
    length) reach that point: a recorded graph goes on as it began, silently."""
    config = job.source.config
    given = getattr(config, "rope_parameters", None) or {}
    # One set for all layers, or one for each kind of layer.
    for each in (given, *(value for value in given.values() if isinstance(value, dict))):
        kind = each.get("rope_type")
        if kind not in _CHANGING_ROPE:
            continue
        until: int = each.get("original_max_position_embeddings") or config.max_position_embeddings
        if longest is None:
            raise PrunekitError(
                f"The RoPE of {job.source.name} ({kind}) changes with the length of the text, which a recorded graph "
                f"can't do; export it to hf or vllm, or to executorch with a --context-length of at most {until:,}."
            )
        if longest > until:
            raise PrunekitError(
                f"The RoPE of {job.source.name} ({kind}) changes in texts longer than {until:,} tokens, which a "
                f"recorded graph can't do; give a --context-length of at most {until:,}, or export it to hf or vllm."
            )


class GraphRunner(TensorRunner):
    """``graph`` takes and returns what :class:`~prunekit.export.formats.pytorch.forward.TorchForward` does, on
    ``device``; ``facts`` are those of model.json. The cache stays a list of tensors from one step to the next."""

    def __init__(self, graph: Callable[..., Any], facts: dict[str, Any], device: str = CPU):
        import torch

        self._graph: Callable[..., Any] | None = graph
        self.device = torch.device(device)
        self.vocab_size = int(facts["vocab_size"])
        self._heads = [int(heads) for heads in facts["key_value_heads"]]
        self._head_dim = int(facts["head_dim"])
        self._dtype = getattr(torch, facts["dtype"])
        self.kv_element_bytes = self._dtype.itemsize
        self._cache: list[Any] = []
        # Cut to length at every call, not made anew.
        self._ones = torch.ones(1, 0, dtype=torch.int64, device=self.device)
        self._places = torch.arange(0, device=self.device)[None]

    def _empty(self, batch: int) -> list[Any]:
        import torch

        return [
            torch.zeros(batch, heads, 0, self._head_dim, dtype=self._dtype, device=self.device)
            for heads in self._heads
            for _ in range(2)
        ]

    def _run(
        self, ids: Any, cache: list[Any], all_logits: bool, mask: Any = None, positions: Any = None
    ) -> tuple[Any, list[Any]]:
        """Logits of every position or of the last one, and the longer cache. Without ``mask`` and ``positions`` nothing
        is padding."""
        import torch

        if self._graph is None:
            raise PrunekitError("This export was closed; open it again.")
        batch, length = ids.shape
        past = cache[0].shape[2]
        total = past + length
        if mask is None:
            if self._ones.shape[0] != batch or self._ones.shape[1] < total:
                self._ones = torch.ones(batch, 2 * total, dtype=torch.int64, device=self.device)
                self._places = torch.arange(2 * total, device=self.device).expand(batch, -1).contiguous()
            mask, positions = self._ones[:, :total], self._places[:, past:total]
        wanted = torch.arange(0 if all_logits else length - 1, length, device=self.device)
        with torch.inference_mode():
            # Compiled code reads its inputs as if they were contiguous.
            mask, positions = mask.contiguous(), positions.contiguous()
            logits, *cache = self._graph(ids, mask, positions, wanted, *cache)
        return logits, cache

    def _restart(self, batch: int) -> None:
        # Dropped before the call, so that the old cache and the new one are never there together.
        self._cache = []
        self._cache = self._empty(batch)

    def _last(self, ids: Any, mask: Any = None, positions: Any = None) -> Any:
        logits, self._cache = self._run(ids, self._cache, False, mask, positions)
        return logits[:, -1]

    def logits(self, ids: Array) -> Array:
        return self._run(self._tensor(ids)[None], self._empty(1), True)[0][0].float().cpu().numpy()

    def close(self) -> None:
        self._graph, self._cache = None, []


def decode_bytes(shape: ModelShape, dtype: str) -> int:
    """Weight bytes that one decode step reads, all stored in ``dtype`` (a name in torch)."""
    return shape.decode_bytes(4 if dtype == "float32" else 2)


def usage_snippet(load: str, tokenizer: bool, device: str = CPU) -> str:
    """A program that continues a text; ``load`` are the lines that make ``model`` on ``device``."""
    on = "" if device == CPU else f', device="{device}"'
    if tokenizer:
        text = (
            'from tokenizers import Tokenizer\n\ntokenizer = Tokenizer.from_file("tokenizer.json")\n'
            f'ids = torch.tensor([tokenizer.encode("The meaning of life is").ids]{on})'
        )
        show = "print(tokenizer.decode(answer))"
    else:
        text = f"ids = torch.tensor([[1, 2, 3]]{on})  # token ids of your tokenizer"
        show = "print(answer)"
    return f"""```python
import json

import torch
{text}

{load}
about = json.load(open("{MODEL_JSON}"))
past = [
    torch.zeros(1, heads, 0, about["head_dim"], dtype=getattr(torch, about["dtype"]){on})
    for heads in about["key_value_heads"]
    for _ in ("key", "value")
]
answer = []
with torch.inference_mode():
    for _ in range(20):
        seen, length = past[0].shape[2], ids.shape[1]
        mask = torch.ones(1, seen + length, dtype=torch.int64{on})
        positions = torch.arange(seen, seen + length{on})[None]
        last = torch.tensor([length - 1]{on})
        logits, *past = model(ids, mask, positions, last, *past)
        ids = logits[:, -1].argmax(-1, keepdim=True)
        if ids.item() in about["eos_token_ids"]:
            break
        answer.append(ids.item())
{show}
```

Inputs, in order: `input_ids` [batch, length], `attention_mask` [batch, past + length] (0 where there is padding),
`position_ids` [batch, length], `logits_at` [n] (those of the `length` positions whose logits are wanted), all int64;
then a key and a value of every layer, [batch, KV heads of that layer, past, head size]. Outputs: logits [batch, n,
vocabulary], then the keys and values to give to the next call. Every length may change from call to call, and past may
be 0. `{MODEL_JSON}` holds the tokens that end a text, the chat templates, and how the checkpoint asks to draw tokens.
"""
