"""The header of a GGUF file, read with care: llama.cpp ends the whole process over some of what can be wrong in it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunekit.errors import PrunekitError
from prunekit.export.gguf_architectures import ARCHITECTURES, MAX_LAYERS

_VERSIONS = (2, 3)
_ALIGNMENT = 32
# Scalars by their number in the format; 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
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

    def scalar(self, code: str) -> Any:
        size = struct.calcsize(code)
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += size
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        begin, self.at = self.at, self.at + length
        if self.at > len(self.data):
            raise ValueError("a text runs past the end of the file")
        return bytes(self.data[begin : self.at]).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        kind, count = self.scalar("I"), self.scalar("Q")
        if count > len(self.data):
            raise ValueError("a list is longer than the file")
        if kind in (_STRING, _ARRAY):
            return [self.value(kind) for _ in range(count)]
        values = struct.unpack_from(f"<{count}{_SCALARS[kind]}", self.data, self.at)
        self.at += struct.calcsize(f"<{count}{_SCALARS[kind]}")
        return list(values)


def read_header(file: Path) -> Header:
    """Raises PrunekitError where ``file`` is no GGUF file, is cut short, or its tables make no sense."""
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            head = handle.read(24)
    except OSError as error:
        raise PrunekitError(f"{file} can't be read: {error.strerror or error}.") from None
    if head[:4] != b"GGUF" or int.from_bytes(head[4:8], "little") not in _VERSIONS or len(head) < 24:
        raise PrunekitError(f"{file} is not a GGUF file of version 2 or 3; export the model again.")
    try:
        return _read(file, size)
    except (struct.error, ValueError, KeyError, OverflowError, MemoryError, RecursionError) as error:
        raise PrunekitError(f"{file} is damaged or cut short ({error}); export the model again.") from None


def _read(file: Path, size: int) -> Header:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    reader = _Reader(np.memmap(file, np.uint8, "r"))
    reader.at = 8
    tensors, keys = reader.scalar("Q"), reader.scalar("Q")
    fields: dict[str, Any] = {}
    for _ in range(keys):
        name = reader.string()
        fields[name] = reader.value(reader.scalar("I"))
    found = []
    for _ in range(tensors):
        name = reader.string()
        shape = tuple(reversed([reader.scalar("Q") for _ in range(reader.scalar("I"))]))
        kind = GGMLQuantizationType(reader.scalar("I"))
        found.append((name, shape, kind, reader.scalar("Q")))
    alignment = fields.get("general.alignment", _ALIGNMENT)
    begin = -(-reader.at // alignment) * alignment
    made = {}
    for name, shape, kind, offset in found:
        block, nbytes = GGML_QUANT_SIZES[kind]
        if not 1 <= len(shape) <= 4 or min(shape) < 1 or shape[-1] % block or name in made:
            raise ValueError(f"the tensor {name!r} has the shape {list(shape)} in {kind.name}, or is there twice")
        length = 1
        for width in shape:
            length *= width
        total = length // block * nbytes
        if offset % alignment or begin + offset + total > size:
            raise ValueError(f"the tensor {name!r} does not lie in the file")
        made[name] = Tensor(name, shape, kind.name, begin + offset, total)
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
