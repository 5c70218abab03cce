"""Text for scoring: token blocks without padding, drawn by a seed, with a fingerprint for the plan."""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from prunekit.data.chat_template import Chats
from prunekit.data.groups import groups_of_blocks, no_group, told_apart
from prunekit.data.sources import SELF, has_fields, is_dataset, pieces, source_name, text_pieces
from prunekit.data.tokenised import added, bos, encode, tokenised
from prunekit.errors import PrunekitError
from prunekit.plan.settings import CalibrationConfig

if TYPE_CHECKING:
    import torch

# A dataset that is streamed is read until it holds this many times the tokens that are asked for.
_STREAM_FACTOR = 8
# A file is read until it holds that, and has given so many characters or tokens: more than most texts have.
_CHARACTERS, _TOKENS = 1 << 24, 1 << 22
# A longer text has to be cut short by name: its ids would take gigabytes, and its evaluation days.
_MOST_TOKENS = 1 << 24
_log = logging.getLogger("prunekit")


@dataclass(frozen=True, eq=False)
class Calibration:
    """Blocks drawn for calibration.

    ``blocks`` [n, length] holds every block of the text, ``text_sha256`` the digest of that text, ``read`` what else
    plans are told of how it was read. ``draw`` counts the fresh draws: 0 is the first. ``groups`` names the group of
    each block, where ``config`` asks for groups.
    """

    config: CalibrationConfig
    blocks: torch.Tensor = field(repr=False)
    text_sha256: str
    draw: int = 0
    read: Mapping[str, Any] = field(default_factory=dict)
    groups: tuple[str, ...] = field(default=(), repr=False)

    @cached_property
    def input_ids(self) -> torch.Tensor:
        """Token ids of this draw, int64 [sequences, length], without padding."""
        return self.blocks[self._drawn].contiguous()

    @cached_property
    def _drawn(self) -> torch.Tensor:
        """The places of this draw's blocks."""
        import torch

        per_pass = len(self.blocks) // self.config.sequences
        sweep, place = divmod(self.draw, per_pass)
        digest = hashlib.sha256(f"{self.config.seed}:{sweep}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        order = torch.randperm(len(self.blocks), generator=generator)
        return order[place * self.config.sequences :][: self.config.sequences]

    @property
    def written(self) -> torch.Tensor:
        """Which sequences of ``input_ids`` the model wrote itself, bool [sequences]."""
        import torch

        return torch.full((self.config.sequences,), self.config.source == SELF)

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the texts that the sequences of ``input_ids`` come from, each with its group where it has
        one."""
        name = source_name(self.config.source)
        if not self.groups:
            return (name,) * self.config.sequences
        return tuple(f"{name}: {self.groups[place]}" for place in self._drawn.tolist())

    def step(self, t: int) -> Calibration:
        """The draw for step ``t`` of a method that repeats scoring; step 0 is this calibration itself.

        Steps walk through one seeded permutation of the whole text, so none repeats a block until the text is used
        up; then a new permutation begins. A text that holds just enough blocks gives the same ones in another order.
        """
        if t < 0:
            raise PrunekitError(f"Calibration steps count from 0, got {t}.")
        return replace(self, draw=t)

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the token ids (int64, little-endian) and where they came from."""
        digest = hashlib.sha256(f"{source_name(self.config.source)}\0{tuple(self.input_ids.shape)}\0".encode())
        digest.update(self.input_ids.numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Provenance for a plan: JSON values only, and no absolute path."""
        return {
            "source": source_name(self.config.source),
            **({"field": self.config.field} if has_fields(self.config.source) else {}),
            **({"split": self.config.split} if is_dataset(self.config.source) else {}),
            **({"group": self.config.group, "groups": dict(Counter(self.sources))} if self.groups else {}),
            **self.read,
            "text_sha256": self.text_sha256,
            "sequences": self.config.sequences,
            "length": self.config.length,
            "batch_size": self.config.batch_size,
            "seed": self.config.seed,
            "draw": self.draw,
            "blocks_available": len(self.blocks),
            "fingerprint": self.fingerprint,
        }


def load_calibration(config: CalibrationConfig, tokenizer: Any) -> Calibration:
    """Tokenise ``config.source``, cut it into blocks and draw from them.

    Documents are packed as :func:`prunekit.data.tokenised.tokenised` does it. Where the tokenizer starts every text
    with BOS, so does every block. Chats are rendered through the model's template. Of a file with more than 16 Mi
    characters or 4 Mi tokens, only so much is read, or 8 times the tokens asked for where that is more; provenance then
    holds ``characters_read``.
    Documents of more than 2 Mi characters are tokenised in pieces, split at white space. Where groups are asked for,
    the documents of each stand together, so that few blocks are of two.
    Raises PrunekitError where the text can't be read or is too short, or its rows name no group.
    """
    needed = config.sequences * config.length
    most, streamed = _STREAM_FACTOR * needed, is_dataset(config.source)
    digest = hashlib.sha256()
    chats = Chats(tokenizer)
    by_group: dict[str | None, array[int]] = {}
    characters = count = 0
    group_field = config.group if has_fields(config.source) else None
    parts = pieces(config.source, field=config.field, split=config.split, render=chats, group=group_field)
    cut_short = False
    for group in tokenised(parts, tokenizer):
        for piece, tokens, _ in group:
            characters += len(piece.text)
            digest.update(piece.text.encode())
            if piece.ends:
                digest.update(b"\0")
            by_group.setdefault(piece.group, array("i")).extend(tokens)
            count += len(tokens)
        if count >= most and (streamed or characters >= _CHARACTERS or count >= _TOKENS):
            cut_short = not streamed and next(parts, None) is not None
            break
    if group_field is not None and not by_group.keys() - {None}:
        raise no_group(config.source, group_field)
    if count < needed:
        fits = count // config.length
        fewer = f"ask for at most {fits} sequences, " if fits else ""
        raise PrunekitError(
            f"The calibration text {source_name(config.source)} holds {count:,} tokens, and {config.sequences} "
            f"sequences of {config.length} need {needed:,}; {fewer}choose a shorter length, or give more text."
        )
    read = {**chats.describe(), **({"characters_read": characters} if cut_short else {})}
    if cut_short:
        _log.warning(
            "The text %s is long: its first %s characters are used.", source_name(config.source), f"{characters:,}"
        )
    names = told_apart({name: len(some) for name, some in by_group.items()})
    ids = array("i")
    runs: list[tuple[str, int]] = []
    # Those that count as one stand together too.
    for shown in dict.fromkeys(names.values()):
        before = len(ids)
        for name, some in by_group.items():
            if names[name] == shown:
                ids.extend(some)
        runs.append((shown, len(ids) - before))
    blocks = _start(_cut(_tensor(ids), config.length), bos(tokenizer))
    groups = () if group_field is None else groups_of_blocks(runs, len(blocks), config.length)
    return Calibration(config, blocks, digest.hexdigest(), read=read, groups=groups)


def _tensor(ids: array[int]) -> torch.Tensor:
    import torch

    return torch.frombuffer(ids, dtype=torch.int32).to(torch.int64) if ids else torch.zeros(0, dtype=torch.int64)


def _cut(ids: torch.Tensor, length: int) -> torch.Tensor:
    count = len(ids) // length
    return ids[: count * length].reshape(count, length)


def _start(blocks: torch.Tensor, token: int | None) -> torch.Tensor:
    """Blocks whose first token is ``token``: Gemma, for one, falls apart on a text that does not start with BOS."""
    if token is not None:
        blocks[:, 0] = token
    return blocks


def text_tokens(
    source: str, tokenizer: Any, max_tokens: int | None = None, *, field: str = "text", split: str = "test"
) -> torch.Tensor:
    """All of ``source`` as one run of token ids, int64 [n], with the special tokens the tokenizer adds to a text.

    ``wikitext`` is the raw WikiText-2 test split joined by empty lines, as perplexities are usually reported on it. A
    text of more than 2 Mi characters is tokenised in pieces, split at white space, and read no further than
    ``max_tokens`` need. Raises PrunekitError where it can't be read, or holds more than 16 Mi tokens and
    ``max_tokens`` is not given.
    """
    parts = text_pieces(source, field=field, split=split, render=Chats(tokenizer))
    text = next(parts)
    # A token rarely spans 16 characters: a prefix saves time, the whole text is the fallback.
    prefix = text if max_tokens is None else text[: 16 * max_tokens]
    ids = array("i", encode(tokenizer, [prefix], special=True)[0])
    if max_tokens is not None and len(ids) <= max_tokens and len(prefix) < len(text):
        ids = array("i", encode(tokenizer, [text], special=True)[0])
    before, after = added(tokenizer)
    # A chat template may have set it itself.
    if before and ids[len(before) : 2 * len(before)].tolist() == before:
        ids = ids[len(before) :]
    while max_tokens is None or len(ids) <= max_tokens:
        piece = next(parts, None)
        if piece is None:
            break
        if max_tokens is None and len(ids) > _MOST_TOKENS:
            raise PrunekitError(
                f"The text {source_name(source)} holds more than {_MOST_TOKENS:,} tokens; say how many of them to use "
                "with --max-tokens."
            )
        if after:
            del ids[-len(after) :]
        ids.extend(encode(tokenizer, [piece])[0])
        ids.extend(after)
    return _tensor(ids[:max_tokens])


def check_tokens(tokens: torch.Tensor, model_config: Any) -> None:
    """Raises PrunekitError where the tokenizer gave tokens that the model has no embedding for."""
    largest = int(tokens.max()) if tokens.numel() else 0
    if largest >= model_config.vocab_size:
        raise PrunekitError(
            f"The tokenizer gives token {largest}, but the model knows only {model_config.vocab_size}; the two don't "
            "belong together, so copy the original model's tokenizer files into the model's folder."
        )


def check_length(config: Any, model_config: Any) -> None:
    """Raises PrunekitError where ``config.length`` is more than the positions the model was made for."""
    most = getattr(model_config, "max_position_embeddings", None)
    if most is not None and config.length > most:
        raise PrunekitError(
            f"Sequences of {config.length} tokens are longer than the {most} positions this model was made for; "
            f"choose a length of at most {most}."
        )
