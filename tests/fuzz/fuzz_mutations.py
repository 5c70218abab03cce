"""Ways to spoil a file: what its format allows and no reader expects, and what chance and full disks do to bytes."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

_Mutate = Callable[[random.Random, bytes], bytes]

_TEXTS = (
    "", " ", "\0", "\x1b[2J\x1b]0;owned\x07", "a\nb\rc", "\u202egnp.exe", "../../etc/passwd", "/etc/passwd", "%s%n{0}",
    "{{ 7*7 }}", "\ud800", "é文🙂", "NaN", "true", "[]", "org/other-model", "__class__", "0-99999999999", "-1", "1e999",
)  # fmt: skip
_NUMBERS = (
    0, -1, 1, 2, 3, 7, 0.5, -0.0, 1e-320, 1e30, 1e308, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**18,
    -(2**63), 10**39, 65535, 1 << 24, 1 << 28,
)  # fmt: skip
_OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"": None}, [0] * 50, {"a": {"b": []}})
# Not JSON, though Python reads them; put in place of a marker.
_RAW = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "1" * 400,
    "1" * 5000,
    "0." + "1" * 400,
    "[" * 5000 + "]" * 5000,
)
_MARK = "\ufdd0mark"
_KEYS = (
    "auto_map", "quantization_config", "model_type", "architectures", "per_layer_config", "rope_scaling",
    "_name_or_path", "base_model_name_or_path", "text_config", "transformers_weights", "custom_generate",
    "sliding_window", "layer_types", "torch_dtype", "dtype", "attn_implementation", "_attn_implementation",
    "chat_template", "tokenizer_class", "merged", "provenance", "changes", "gguf_file", "assistant_model",
    "cache_implementation", "tokenizer_file", "head_dim",
)  # fmt: skip
_TEMPLATES = (
    "{% for i in range(10**12) %}x{% endfor %}",
    "{{ 'x' * 10**12 }}",
    "{{ messages[9].content }}",
    "{% if %}",
    "{{ 1/0 }}",
    "{{ raise_exception('no\\x1b[31m') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% include '/etc/passwd' %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "",
    "{{ messages }}",
    "{{ undefined.x.y }}",
    "x" * 300000,
    "{% for a in 'x'*9999 %}{% for b in 'x'*9999 %}{{ a }}{{ b }}{% endfor %}{% endfor %}",
    "{{ '%0999999999d' % 1 }}",
    "{{ cycler.__init__.__globals__.os.system('touch owned') }}",
    "\x1b[31m{{ messages[0].content }}",
)
_ROWS = (
    b"null",
    b"{}",
    b'{"text": null}',
    b'{"text": 3}',
    b"[1]",
    b'{"text": NaN}',
    b'{"text": "\\ud800"}',
    b'{"text":',
    b"\0",
    b'{"text": "a", "text": "b"}',
    b"[" * 3000,
    b'{"text": ' + b"1" * 5000 + b"}",
    b'{"messages": [{"role": 3}]}',
)


def spoil(rng: random.Random, file: Path) -> str:
    """Spoil ``file`` in one of the ways that suit it. Returns what was done."""
    if rng.random() < 0.06 or file.is_dir():
        return _swap(rng, file)
    data = file.read_bytes()
    ways = _ways(file)
    made = data
    # Now and then two at once.
    done = []
    for _ in range(1 if rng.random() < 0.8 else 2):
        way = rng.choice(ways)
        try:
            made = way(rng, made)
        except (ValueError, KeyError, TypeError, IndexError, struct.error, RecursionError):
            continue
        done.append(way.__name__.strip("_"))
    file.write_bytes(made)
    return ", ".join(done) or "nothing"


def _ways(file: Path) -> list[_Mutate]:
    bytewise: list[_Mutate] = [_truncate, _flip, _overwrite, _insert, _empty]
    if file.suffix == ".json":
        return [_json] * 16 + [_raw_number] * 3 + [_twice] + bytewise
    if file.suffix == ".safetensors":
        return [_header] * 8 + [_header_length] * 2 + [_numbers] + bytewise
    if file.suffix == ".gguf":
        return [_count] * 8 + [_word] * 4 + [_flip_head] * 4 + bytewise
    if file.suffix == ".jinja":
        return [_template] * 4 + bytewise
    if file.suffix == ".jsonl":
        return [_row] * 8 + [_text] * 2 + bytewise
    return [_text] * 3 + bytewise


def _swap(rng: random.Random, file: Path) -> str:
    """Something else than a file, under its name."""
    kind = rng.choice(
        ("folder", "full folder", "dangling link", "link to itself", "link to a device", "pipe", "empty", "gone")
    )
    data = file.read_bytes() if file.is_file() else b""
    shutil.rmtree(file) if file.is_dir() else file.unlink()
    if kind.endswith("folder"):
        file.mkdir()
        if kind.startswith("full"):
            (file / file.name).write_bytes(data)
    elif kind == "dangling link":
        file.symlink_to("nowhere")
    elif kind == "link to itself":
        file.symlink_to(file.name)
    elif kind == "link to a device":
        file.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "empty":
        file.touch()
    return kind


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _flip(rng: random.Random, data: bytes) -> bytes:
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def _flip_head(rng: random.Random, data: bytes) -> bytes:
    return _flip(rng, data[:1500]) + data[1500:]


def _overwrite(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    filler = rng.choice((b"\0", b"\xff", b"\x80", b"A", b"\n"))
    length = min(rng.choice((1, 8, 64, 4096)), len(data) - start)
    return data[:start] + filler * length + data[start + length :]


def _insert(rng: random.Random, data: bytes) -> bytes:
    start = rng.choice((0, len(data), rng.randrange(len(data) + 1)))
    return (
        data[:start]
        + rng.choice((b"\xef\xbb\xbf", b"\0" * 9, b"\xff\xfe", b"{}", b"\x1f\x8b", b"\x1b[2J"))
        + data[start:]
    )


def _empty(rng: random.Random, data: bytes) -> bytes:
    return b""


def _value(rng: random.Random, old: Any) -> Any:
    if isinstance(old, int | float) and not isinstance(old, bool) and rng.random() < 0.5:
        return rng.choice((old + 1, old - 1, -old, old * 2, float(old), str(old), [old], old * 10**18))
    pool: tuple[Any, ...] = rng.choice((_TEXTS, _NUMBERS, _NUMBERS, _OTHERS))
    return rng.choice(pool)


def _slots(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below ``value``."""
    found = []
    stack = [value]
    while stack:
        each = stack.pop()
        inner = (
            list(each.items()) if isinstance(each, dict) else list(enumerate(each)) if isinstance(each, list) else []
        )
        found += [(each, key) for key, _ in inner]
        stack += [value for _, value in inner]
    return found


def _changed(rng: random.Random, value: Any) -> Any:
    slots = _slots(value)
    container, key = rng.choice(slots)
    what = rng.random()
    if what < 0.6:
        container[key] = _value(rng, container[key])
    elif what < 0.75:
        del container[key]
    elif what < 0.85 and isinstance(container, dict):
        container[rng.choice((*_KEYS, *_TEXTS[:8]))] = _value(rng, None)
    elif what < 0.93:
        other, name = rng.choice(slots)
        container[key] = other[name]
    elif isinstance(container, list):
        container += container * rng.choice((1, 10, 200))
    else:
        container[key] = {str(number): container[key] for number in range(rng.choice((1, 300)))}
    return value


def _json(rng: random.Random, data: bytes) -> bytes:
    return json.dumps(_changed(rng, json.loads(data))).encode()


def _raw_number(rng: random.Random, data: bytes) -> bytes:
    value = json.loads(data)
    container, key = rng.choice(_slots(value))
    container[key] = _MARK
    return json.dumps(value).replace(json.dumps(_MARK), rng.choice(_RAW)).encode()


def _twice(rng: random.Random, data: bytes) -> bytes:
    value = json.loads(data)
    key = rng.choice(list(value))
    return b"{" + json.dumps({key: _value(rng, value[key])}).encode()[1:-1] + b"," + data.lstrip()[1:]


def _header(rng: random.Random, data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = _json(rng, data[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _header_length(rng: random.Random, data: bytes) -> bytes:
    return (
        rng.choice((0, 1, 2**31, 2**32, 2**60, 2**63, 2**64 - 1, len(data), len(data) - 8)).to_bytes(8, "little")
        + data[8:]
    )


def _numbers(rng: random.Random, data: bytes) -> bytes:
    start = len(data) - 4 * rng.randrange(1, 1000)
    return data[:start] + struct.pack("<f", rng.choice((float("nan"), float("inf"), 3e38, -0.0))) + data[start + 4 :]


def _count(rng: random.Random, data: bytes) -> bytes:
    """A number of 64 or 32 bits somewhere in the tables of a GGUF file."""
    start = rng.choice((8, 16, rng.randrange(24, min(len(data) - 8, 2500))))
    if rng.random() < 0.7:
        value = rng.choice((0, 1, 3, 2**16, 2**20, 2**31, 2**32, 2**40, 2**60, 2**63, 2**64 - 1))
        return data[:start] + value.to_bytes(8, "little") + data[start + 8 :]
    return (
        data[:start] + rng.choice((0, 1, 8, 9, 12, 13, 255, 2**31, 2**32 - 1)).to_bytes(4, "little") + data[start + 4 :]
    )


def _word(rng: random.Random, data: bytes) -> bytes:
    old = rng.choice(
        (
            b"llama",
            b"block_count",
            b"head_count",
            b"blk.0",
            b"blk.1",
            b"attn_q",
            b"token_embd",
            b"smollm",
            b"gpt2",
            b"rope",
        )
    )
    new = rng.choice((b"llamb", b"qwen2", b"blk.9", b"\x1b[2Jx", b"\xff\xff\xff\xff\xff", b"context"))
    return data.replace(old, (new * 3)[: len(old)], rng.choice((1, -1)))


def _template(rng: random.Random, data: bytes) -> bytes:
    return rng.choice(_TEMPLATES).encode("utf-8", "surrogatepass")


def _row(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    lines[rng.randrange(len(lines))] = rng.choice(_ROWS)
    return b"\n".join(lines)


def _text(rng: random.Random, data: bytes) -> bytes:
    return rng.choice(
        (
            data[:5],
            b" " * 5000,
            b"\xff\xfe" + data.decode("latin-1").encode("utf-16-le"),
            b"\x1f\x8b" + data,
            b"a" * 200_000,
            data.replace(b" ", b"\r"),
            data.replace(b"e", b"\xe9"),
            b"\x00" + data,
            b"\xed\xa0\x80" * 100,
            data * 3,
        )
    )
