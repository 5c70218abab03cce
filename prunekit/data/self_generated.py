"""Text that a model writes itself: the nearest thing to what it was trained on, where that is not at hand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.data.sources import SELF
from prunekit.errors import PrunekitError
from prunekit.utils.advance import Advance
from prunekit.utils.files.cache import cache_key, cache_place
from prunekit.utils.files.kept_tensors import read_kept_tensors, write_kept_tensors
from prunekit.utils.numerics.bf16 import has_fast_products
from prunekit.utils.phases.telling import keeping
from prunekit.utils.phases.titles import OWN_TEXT
from prunekit.utils.process.ranks import from_first, in_order, is_first, rounds, share_of
from prunekit.utils.progress import progress
from prunekit.utils.provenance import versions

if TYPE_CHECKING:
    import torch

    from prunekit.models.dense import DenseModel
    from prunekit.models.source import Source
    from prunekit.plan.shape import ModelShape

# Sequences that are sampled together, and kept as one file in the cache: so many, and of the last ones a multiple of
# the other number.
CHUNK = 64
_FEW = 8
_RECIPE = 3
# Operations a number of a head for every earlier token: 4, at a third of the speed of products.
_SLOW_ATTENTION = 12


@dataclass(frozen=True)
class Writer:
    """What samples in place of the plain model, such as a runtime that is faster on a GPU.

    ``write(starts, length, seed)`` continues ``starts`` [n, 1] to [n, length], int64 on the CPU, each token drawn from
    the whole distribution; n is at most ``CHUNK``. The same seed gives the same text. The cache keeps texts by
    ``name``, so that whatever would write others needs another one.
    """

    name: str
    write: Callable[[torch.Tensor, int, int], torch.Tensor]


Sampler = Callable[[int, int, Advance], "torch.Tensor"]
"""Samples a chunk of that number and so many sequences, and tells of them."""

Writing = Callable[["Source", str], AbstractContextManager[Writer | None]]
"""What gives a :class:`Writer` of a model on a device for a while, or None where the plain model is to sample."""


def self_written(dense: DenseModel, first: int | None, config: Any) -> torch.Tensor:
    """Blocks [config.sequences, config.length] of token ids sampled from the ``dense`` model, each from the whole
    distribution: a lower temperature (0.8) or a nucleus (0.95) made text from which a refit carried over less
    (SmolLM2-135M).

    Half of the sequences start with ``first`` (the token that starts a document), the others with a random token, so
    that the model also writes what it would never begin with. A document that ends is followed by the next. Seeded by
    ``config.seed``; chunks are kept in the cache, so that the same model, seed and length are sampled once. CPUs made
    for bfloat16 sample in it, in half the time. Ranks share out the chunks, and all get all of them.
    Raises PrunekitError where the model's probabilities are not finite.
    """
    import torch

    return torch.cat(list(written_chunks(dense, first, config))).contiguous()


def written_chunks(
    dense: DenseModel,
    first: int | None,
    config: Any,
    *,
    writer: Writer | None = None,
    option: str = "--calib",
) -> Generator[torch.Tensor, None, None]:
    """The blocks of :func:`self_written` [n, config.length], some at a time, so that no more is in memory: from the
    ``writer`` where one is given. ``option`` names the text in errors.

    Close it where not all is asked for: the model computes in another dtype meanwhile.
    """
    # Rank 0's cache is that of all.
    files: list[Any] = from_first(lambda: [[str(file), size] for file, size in _files(dense, config, writer)])
    left = config.sequences
    sampler: Sampler | None = None
    total = sum(size for _, size in files)
    done = 0
    shape = dense.source.shape
    head = 2 * shape.vocab_size * shape.hidden_size
    each = sum(head + cost_of_place(shape, place) for place in range(config.length - 1))
    shown: dict[str, Any] = {
        "work": {"": total * each},
        "tokens": total * config.length,
        "kept_in": Path(files[0][0]).parent if files else None,
    }
    with progress(OWN_TEXT, total, **shown) as advance, ExitStack() as stack:
        for some in rounds(range(len(files))):
            at = [Path(files[chunk][0]) for chunk in some]
            kept: list[Any] = from_first(partial(list, map(read_kept_tensors, at)))
            missing = [place for place, tensors in enumerate(kept) if tensors is None]
            made = []
            mine = share_of(missing)
            for place in mine:
                if sampler is None and writer is not None:
                    sampler = _asking(writer, dense.source.config.vocab_size, first, config)
                elif sampler is None:
                    model = stack.enter_context(computing(dense))
                    sampler = _sampler(model, dense.source.name, shape, first, config, option)
                made.append(sampler(some[place], files[some[place]][1], advance))
            for place, block in zip(missing, in_order(made, len(missing)), strict=True):
                kept[place] = {"ids": block}
                if is_first():
                    write_kept_tensors(at[place], kept[place])
            for place, (chunk, tensors) in enumerate(zip(some, kept, strict=True)):
                size = files[chunk][1]
                done += size
                # What was sampled here was told of token by token.
                if place not in mine:
                    advance(size, kept=place not in missing)
                if at[place].is_file():
                    keeping("sequences that the model wrote", done, total)
                yield tensors["ids"][:left]
                left -= size


def unwritten(dense: DenseModel, config: Any, *, writer: Writer | None = None) -> list[int]:
    """How many sequences each chunk of :func:`written_chunks` has that the cache does not hold yet."""
    return [size for file, size in _files(dense, config, writer) if not file.is_file()]


def computing(dense: DenseModel) -> AbstractContextManager[Any]:
    """The model in what it writes in: the dtype that it is stored in, whatever else is computed in."""
    import torch

    from prunekit.models.source import pick_device

    fast = has_fast_products(pick_device(dense.device))
    return dense.computing_in(torch.bfloat16 if fast else dense.source.dtype)


def _chunks(sequences: int) -> list[int]:
    """How many sequences each chunk has: all but the last are the same whatever their number."""
    whole, rest = divmod(sequences, CHUNK)
    return [CHUNK] * whole + ([-(-rest // _FEW) * _FEW] if rest else [])


def _files(dense: DenseModel, config: Any, writer: Writer | None) -> list[tuple[Path, int]]:
    """Where each chunk is kept, and how many sequences it has."""
    folder = _folder(dense.source, config.length, config.seed, dense.device, writer)
    return [(folder / f"{chunk}-{size}.safetensors", size) for chunk, size in enumerate(_chunks(config.sequences))]


def _folder(source: Source, length: int, seed: int, device: str, writer: Writer | None) -> Path:
    from prunekit.models.source import pick_device

    # The same seed gives other numbers on another device, precision or version.
    key = {
        "recipe": _RECIPE,
        "model": source.fingerprint,
        "length": length,
        "seed": seed,
        "device": pick_device(device).type,
        "fast": has_fast_products(pick_device(device)),
        "versions": versions(),
        **({} if writer is None else {"writer": writer.name}),
    }
    return cache_place(SELF, cache_key(key), needed=False)


def _starts(vocabulary: int, first: int | None, size: int, generator: torch.Generator) -> torch.Tensor:
    import torch

    starts = torch.randint(0, vocabulary, (size, 1), generator=generator)
    if first is not None:
        starts[::2] = first
    return starts


def _asking(writer: Writer, vocabulary: int, first: int | None, config: Any) -> Sampler:
    import torch

    def written(chunk: int, size: int, advance: Advance) -> torch.Tensor:
        seed = int.from_bytes(_digest(config.seed, chunk), "little")
        starts = _starts(vocabulary, first, size, torch.Generator().manual_seed(seed))
        ids = writer.write(starts, config.length, seed)
        if ids.dtype != torch.int64 or ids.shape != (size, config.length) or not torch.equal(ids[:, :1], starts):
            raise PrunekitError(
                f"The writer {writer.name} must continue {size} starts to int64 [{size}, {config.length}], but gave "
                f"{str(ids.dtype).removeprefix('torch.')} {list(ids.shape)}, or other starts."
            )
        advance(size)
        return ids.contiguous()

    return written


def cost_of_place(shape: ModelShape, place: float) -> float:
    """What one more token costs behind so many others, in operations of all layers."""
    heads = sum(layer.num_attention_heads for layer in shape.layers)
    return 2.0 * shape.block_parameters + _SLOW_ATTENTION * place * heads * shape.head_dim


def _sampler(model: Any, name: str, shape: ModelShape, first: int | None, config: Any, option: str) -> Sampler:
    import torch

    from prunekit.utils.numerics.finite import blame_layer

    vocabulary = model.config.vocab_size

    def written(chunk: int, size: int, advance: Advance) -> torch.Tensor:
        generator = torch.Generator().manual_seed(int.from_bytes(_digest(config.seed, chunk), "little"))
        starts = _starts(vocabulary, first, size, generator)
        try:
            return continued(model, shape, starts, config.length, generator, advance)
        except _NotFinite:
            blame_layer(model, lambda: model(input_ids=starts.to(model.device), use_cache=False))
            raise PrunekitError(
                f"{name} gives probabilities that are not finite in {model.dtype}, so it can't write text; "
                f"its weights are broken, or give a text file with {option}."
            ) from None

    return written


class _NotFinite(Exception):
    """The model gave NaN or infinite logits."""


def continued(
    model: Any, shape: ModelShape, starts: torch.Tensor, length: int, generator: torch.Generator, advance: Advance
) -> torch.Tensor:
    """``starts`` [B, 1] continued by the ``model`` to [B, length], each token drawn from the whole distribution.
    ``advance`` is told of parts of B sequences."""
    import torch

    from prunekit.utils.numerics.categorical import sampled

    made = torch.empty(len(starts), length, dtype=torch.int64)
    head = 2 * shape.vocab_size * shape.hidden_size
    made[:, :1] = starts
    device = model.get_input_embeddings().weight.device
    cache = _room_for(length, model.config.num_hidden_layers)
    # A mask of nothing but ones: given one, transformers takes the heads of a group at once, four times as fast. It
    # would hide a window that ends before the text does.
    window = getattr(model.config, "sliding_window", None)
    mask = None
    if window is None or length <= window:
        mask = torch.ones(len(starts), 1, 1, length, dtype=torch.bool, device=device)
    with torch.inference_mode():
        for place in range(length - 1):
            ids = made[:, place : place + 1].to(device)
            seen = None if mask is None else mask[..., : place + 1]
            given = {"input_ids": ids, "attention_mask": seen, "past_key_values": cache, "use_cache": True}
            logits = model(**given).logits[:, -1].float()
            # A sum is finite where all is, and much cheaper than to look at each.
            if not torch.isfinite(logits.sum(-1)).all():
                raise _NotFinite
            # The generator is the CPU's, so that a device changes nothing else.
            made[:, place + 1] = sampled(logits, generator, torch.float64).cpu()
            advance(len(starts) / (length - 1), cost=len(starts) * (head + cost_of_place(shape, place)))
    return made


def _room_for(length: int, layers: int) -> Any:
    """An empty cache of ``length`` tokens. transformers' growing caches are copied at every step, and attention reads
    those of a fixed size to their end."""
    import torch
    from transformers.cache_utils import Cache, DynamicLayer

    class Room(DynamicLayer):
        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            start = self.get_seq_length()
            if not start:
                self.lazy_initialization(key_states, value_states)
                self._room = [
                    torch.empty(*new.shape[:2], length, new.shape[3], dtype=new.dtype, device=new.device)
                    for new in (key_states, value_states)
                ]
            end = start + key_states.shape[2]
            for room, new in zip(self._room, (key_states, value_states), strict=True):
                room[:, :, start:end] = new
            self.keys, self.values = (room[:, :, :end] for room in self._room)
            return self.keys, self.values

    return Cache(layers=[Room() for _ in range(layers)])


def _digest(seed: int, chunk: int) -> bytes:
    return hashlib.sha256(f"{seed}:{chunk}".encode()).digest()[:7]
