"""The header of a GGUF file, read with care: llama.cpp ends the whole process over some of what can be wrong in it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunekit.errors import PrunekitError
from prunekit.models.gguf.tensors import ARCHITECTURES, MAX_LAYERS

_VERSIONS = (2, 3)
_ALIGNMENT = 32
# Scalars by their number in the format; 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Several times what any model has. All of them are also held against the length of the file.
_MAX_TENSORS = 1 << 20
_MAX_KEYS = 1 << 16
_MAX_ITEMS = 1 << 24
_MAX_TEXT = 64 << 20
_MAX_NESTING = 4
_MAX_AXES = 4
_MAX_ALIGNMENT = 1 << 20
_SCALINGS = ("none", "linear", "yarn", "longrope")


@dataclass(frozen=True)
class Tensor:
    """A tensor as the header describes it. ``shape`` is as in PyTorch, rows first; ``kind`` the type's name in capital
    letters; its ``nbytes`` begin at ``offset`` of the file."""

    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int
    nbytes: int

    @property
    def values(self) -> int:
        return int(np.prod(self.shape))


@dataclass(frozen=True)
class Header:
    """``fields`` are the file's keys (arrays as lists), ``tensors`` its tensors by name."""

    file: Path
    fields: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def architecture(self) -> str:
        return str(self.fields.get("general.architecture"))

    def field(self, name: str, default: Any = None) -> Any:
        """A key of the architecture, by its name behind the first dot."""
        return self.fields.get(f"{self.architecture}.{name}", default)

    def data(self, name: str) -> Any:
        """A tensor's bytes, uint8 [rows, bytes a row], mapped from the file."""
        tensor = self.tensors[name]
        raw = np.memmap(self.file, np.uint8, "r", tensor.offset, (tensor.nbytes,))
        return raw.reshape(tensor.shape[0] if len(tensor.shape) > 1 else 1, -1)


class _Reader:
    """Numbers and strings from bytes, one behind the other. Raises struct.error or ValueError where they end."""

    def __init__(self, data: Any):
        self.data, self.at = data, 0
        self.items = 0

    def scalar(self, code: str) -> Any:
        size = struct.calcsize(code)
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += size
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        if length > min(_MAX_TEXT, len(self.data) - self.at):
            raise ValueError(f"a text of {length:,} bytes is too long, or runs past the end of the file")
        begin, self.at = self.at, self.at + length
        return bytes(self.data[begin : self.at]).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(_scalar(kind))
        kind, count = self.scalar("I"), self.scalar("Q")
        # No item takes less than a byte.
        self.items += count
        if count > len(self.data) - self.at or self.items > _MAX_ITEMS or depth == _MAX_NESTING:
            raise ValueError(f"a list of {count:,} items is too long, too deep, or runs past the end of the file")
        if kind in (_STRING, _ARRAY):
            return [self.value(kind, depth + 1) for _ in range(count)]
        form = f"<{count}{_scalar(kind)}"
        values = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return list(values)


def _scalar(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"it holds a value of the unknown type {kind}")
    return _SCALARS[kind]


def read_header(file: Path, advice: str = "export the model again") -> Header:
    """Every count and length is held against the length of the file before anything is allocated or counted through.

    Raises PrunekitError, which ends in ``advice``, where ``file`` is no GGUF file, is cut short, or its tables make no
    sense.
    """
    try:
        if not file.is_file():
            raise PrunekitError(f"{file} is no regular file; {advice}.")
        size = file.stat().st_size
        with file.open("rb") as handle:
            head = handle.read(24)
    except OSError as error:
        raise PrunekitError(f"{file} can't be read: {error.strerror or error}.") from None
    if head[:4] != b"GGUF" or len(head) < 24 or int.from_bytes(head[4:8], "little") not in _VERSIONS:
        raise PrunekitError(f"{file} is not a GGUF file of version 2 or 3, or it is cut short; {advice}.")
    try:
        return _read(file, size)
    except (struct.error, ValueError, KeyError, OverflowError, MemoryError, RecursionError) as error:
        raise PrunekitError(
            f"{file} can't be read as a GGUF model: it is damaged or cut short ({error}); {advice}."
        ) from None


def _read(file: Path, size: int) -> Header:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    # Slices of a memory map itself cost ten times as much.
    reader = _Reader(np.memmap(file, np.uint8, "r").data)
    reader.at = 8
    tensors, keys = reader.scalar("Q"), reader.scalar("Q")
    for what, count, limit in (("tensors", tensors, _MAX_TENSORS), ("keys", keys, _MAX_KEYS)):
        if count > limit:
            raise ValueError(f"it claims to hold {count:,} {what}")
    fields: dict[str, Any] = {}
    for _ in range(keys):
        name = reader.string()
        if name in fields:
            raise ValueError(f"it holds the key {name[:60]!r} twice")
        fields[name] = reader.value(reader.scalar("I"))
    found = []
    for _ in range(tensors):
        name = reader.string()
        if (axes := reader.scalar("I")) > _MAX_AXES:
            raise ValueError(f"the tensor {name[:60]!r} has {axes:,} axes")
        shape = tuple(reversed([reader.scalar("Q") for _ in range(axes)]))
        kind = GGMLQuantizationType(reader.scalar("I"))
        found.append((name, shape, kind, reader.scalar("Q")))
    alignment = fields.get("general.alignment", _ALIGNMENT)
    if type(alignment) is not int or not 1 <= alignment <= _MAX_ALIGNMENT:
        raise ValueError(f"it aligns tensors to {str(alignment)[:60]!r} bytes")
    begin = -(-reader.at // alignment) * alignment
    made = {}
    for name, shape, kind, offset in found:
        block, nbytes = GGML_QUANT_SIZES[kind]
        if not 1 <= len(shape) <= _MAX_AXES or min(shape) < 1 or shape[-1] % block or name in made:
            raise ValueError(f"the tensor {name!r} has the shape {list(shape)} in {kind.name}, or is there twice")
        length = 1
        for width in shape:
            length *= width
        total = length // block * nbytes
        if offset % alignment or begin + offset + total > size:
            raise ValueError(f"the tensor {name!r} does not lie in the file")
        made[name] = Tensor(name, shape, kind.name, begin + offset, total)
    # A thousand tensors over the same bytes would be a thousand times the file in memory.
    if sum(tensor.nbytes for tensor in made.values()) > size:
        raise ValueError("its tensors overlap")
    return Header(file, fields, made)


def check_header(header: Header) -> None:
    """Raises PrunekitError for what llama.cpp would end the process over, instead of refusing the file."""
    for problem, wrong in _problems(header):
        if wrong:
            raise PrunekitError(f"{header.file} is damaged: {problem}. Export the model again.")


def _problems(header: Header) -> list[tuple[str, bool]]:
    layers = header.field("block_count")
    if header.architecture not in ARCHITECTURES or not _whole(layers) or layers > MAX_LAYERS:
        return [(f"it holds {layers!r} layers of the architecture {header.architecture!r}", True)]

    def widths(name: str) -> list[Any]:
        value = header.field(name)
        return value if isinstance(value, list) else [value] * layers

    heads, kv_heads, ffn = (
        widths("attention.head_count"),
        widths("attention.head_count_kv"),
        widths("feed_forward_length"),
    )
    whole = all(len(each) == layers and all(map(_whole, each)) for each in (heads, kv_heads, ffn))
    head_dim, rotated = header.field("attention.key_length"), header.field("rope.dimension_count")
    table = header.tensors.get("token_embd.weight")
    pattern = header.field("attention.sliding_window_pattern", [False] * layers)
    problems = [
        ("its head counts and FFN widths are no numbers for every layer", not whole),
        (
            "query heads can't be shared by KV heads",
            whole and any(h % k for h, k in zip(heads, kv_heads, strict=False)),
        ),
        (
            "its head sizes disagree",
            not _whole(head_dim) or header.field("attention.value_length") != head_dim or not _whole(rotated),
        ),
        (
            "it rotates more than a head has",
            _whole(head_dim) and _whole(rotated) and (rotated > head_dim or rotated % 2),
        ),
        (
            "it has no hidden size or no length",
            not all(map(_whole, map(header.field, ("embedding_length", "context_length")))),
        ),
        (
            "it names an unknown scaling of rotary embeddings",
            header.field("rope.scaling.type", "none") not in _SCALINGS,
        ),
        ("its list of windowed layers has another length", isinstance(pattern, list) and len(pattern) != layers),
        ("it has no token embeddings", table is None),
    ]
    return problems + (_vocabulary_problems(header, table.shape[0]) if table is not None else [])


def _vocabulary_problems(header: Header, size: int) -> list[tuple[str, bool]]:
    fields = header.fields
    model = fields.get("tokenizer.ggml.model")
    if model == "none":
        return [("its vocabulary has another size than its embeddings", header.field("vocab_size") != size)]
    tokens = fields.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        return [("it has no list of tokens", True)]
    lists = {name: fields.get(f"tokenizer.ggml.{name}", tokens) for name in ("scores", "token_type")}
    short = [name for name, values in lists.items() if not isinstance(values, list) or len(values) < len(tokens)]
    return [
        (f"it has a vocabulary of the unknown kind {model!r}", model not in ("gpt2", "llama")),
        ("its vocabulary has another size than its embeddings", len(tokens) != size),
        # C strings end where llama.cpp then sees the same token again.
        ("a token is there twice or empty", len({token.split("\0")[0] for token in (*tokens, "")}) <= len(tokens)),
        (f"its list of {' and '.join(short)} is too short", bool(short)),
    ]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
