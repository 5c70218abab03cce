"""Text files of any size and kind, read in pieces: plain or packed, files or pipes, UTF-8 or with a byte-order mark."""

from __future__ import annotations

import codecs
import io
import os
import select
import stat
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from prunekit.errors import PrunekitError

# The longest line of a JSONL or CSV file, in characters: json.loads needs up to twenty times as many bytes.
LONGEST_ROW = 1 << 24
_PIECE = 1 << 20
# Seconds without data after which a pipe counts as one that nobody writes to.
_PATIENCE = 10.0
# A pipe may never end.
_MOST_FROM_A_PIPE = 1 << 30
# Text is packed to a third or a tenth of its size.
_MOST_GROWTH = 100
_GROWTH_BEYOND = 1 << 26
_MOST_BLANK, _MOST_BLANK_LINES = 1 << 26, 1_000_000
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
# The longer mark first: UTF-32's begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_pieces(path: Path) -> Iterator[str]:
    """The text of ``path``, as it was when it was opened, in pieces of at most about a million characters.

    UTF-8, or UTF-16 and UTF-32 with a byte-order mark; gzipped (or zstd, where a package for it is installed) or not;
    a regular file, or a pipe that somebody writes to. Line ends become ``\\n``. Raises PrunekitError in one sentence
    where it can't be read, is empty, no text, or a small file that grows without end.
    """
    lines = io.IncrementalNewlineDecoder(None, translate=True)
    length = 0
    blank = True
    with _opened(path) as (raw, data):
        decoder: Any = None
        position = 0
        for block in _blocks(path, raw, data):
            if decoder is None:
                encoding = next((name for mark, name in _MARKS if block.startswith(mark)), "utf-8-sig")
                if encoding == "utf-8-sig" and b"\0" in block[:65536]:
                    raise PrunekitError(
                        f"{path} is a binary file; give a plain text (.txt), .jsonl, .csv or gzipped text file. UTF-16 "
                        "needs a byte-order mark, or `iconv -f UTF-16LE -t UTF-8`."
                    )
                decoder = codecs.getincrementaldecoder(encoding)()
            text = lines.decode(_decode(path, decoder, block, position), final=not block)
            position += len(block)
            length += len(text)
            if blank and (blank := not text.strip()) and length > _MOST_BLANK:
                raise PrunekitError(f"The first {length:,} characters of {path} are blank; give one that holds text.")
            if text:
                yield text
    if blank:
        raise PrunekitError(f"The text file {path} is empty; give one that holds text.")


def _decode(path: Path, decoder: Any, block: bytes, position: int) -> str:
    held = len(decoder.getstate()[0])
    try:
        text: str = decoder.decode(block, final=not block)
    except UnicodeDecodeError as error:
        name = {"utf-16": "UTF-16", "utf-32": "UTF-32"}.get(error.encoding[:6].replace("_", "-"), "UTF-8")
        raise PrunekitError(
            f"{path} is not {name} text (byte {position - held + error.start} does not fit); convert it, for example "
            "with `iconv -f LATIN1 -t UTF-8`."
        ) from None
    return text


def _blocks(path: Path, raw: _Raw, data: IO[bytes]) -> Iterator[bytes]:
    """The unpacked bytes in blocks; the last one is empty."""
    size = 0
    while True:
        try:
            block = data.read(_PIECE)
        except (PrunekitError, MemoryError):
            raise
        except (EOFError, zlib.error) as error:
            raise PrunekitError(f"{path} is not a whole gzip file ({error}); make or download it again.") from None
        except OSError as error:
            raise _unreadable(path, error) from None
        except Exception as error:  # the error types of the zstd packages
            raise PrunekitError(f"{path} is not a whole zstd file ({error}); make or download it again.") from None
        size += len(block)
        if data is not raw.buffered:
            check_growth(path, raw.taken, size)
        yield block
        if not block:
            return


def check_growth(path: Path, packed: int, unpacked: int) -> None:
    """Raises PrunekitError where ``packed`` bytes of a file have become more than text ever does."""
    if unpacked > max(_GROWTH_BEYOND, _MOST_GROWTH * packed):
        raise PrunekitError(
            f"{path} grows to more than {_MOST_GROWTH} times its size when it is unpacked, as no ordinary text "
            "does; unpack it yourself and give the unpacked file, if you trust it."
        )


class _Raw(io.RawIOBase):
    """An open file. A regular one ends where it ended when it was opened; a pipe must deliver."""

    def __init__(self, path: Path, descriptor: int):
        self._path, self._descriptor = path, descriptor
        about = os.fstat(descriptor)
        self._pipe = not stat.S_ISREG(about.st_mode)
        # Files of /proc say 0.
        self._most = None if self._pipe else about.st_size or None
        self.taken = 0
        self.buffered = io.BufferedReader(self, _PIECE)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = len(buffer) if self._most is None else min(len(buffer), self._most - self.taken)
        data = self._wait_and_read(size) if self._pipe else os.read(self._descriptor, size)
        self.taken += len(data)
        buffer[: len(data)] = data
        return len(data)

    def _wait_and_read(self, size: int) -> bytes:
        if self.taken > _MOST_FROM_A_PIPE:
            raise PrunekitError(
                f"{self._path} is a pipe that gave more than {_MOST_FROM_A_PIPE:,} bytes; write the text to a file."
            )
        end = time.monotonic() + _PATIENCE
        waiting = select.poll()
        waiting.register(self._descriptor, select.POLLIN)
        while (left := end - time.monotonic()) > 0:
            if waiting.poll(1000 * left):
                try:
                    return os.read(self._descriptor, size)
                except BlockingIOError:
                    continue
        raise PrunekitError(
            f"{self._path} is a pipe, and nothing was written to it for {_PATIENCE:g} seconds; write the text to a "
            "file and give that."
        )

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


class _Unzipped(io.RawIOBase):
    """What a gzip file of one or more members holds. Python's gzip reads names in their headers byte by byte."""

    def __init__(self, packed: io.BufferedReader[Any]):
        self._packed = packed
        self._held = b""
        self._member: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            # What is behind a member is copied, and members may be tiny.
            self._held = self._held or self._packed.read1(_PIECE >> 5)
            if self._member is None:
                # Tapes fill up with zeros.
                self._held = self._held.lstrip(b"\0")
                if self._held:
                    self._member = zlib.decompressobj(zlib.MAX_WBITS | 16)
                elif not self._packed.peek(1):
                    return 0
                continue
            at_end = not self._held
            data = self._member.decompress(self._held, len(buffer))
            if self._member.eof:
                self._held, self._member = self._member.unused_data, None
            else:
                self._held = self._member.unconsumed_tail
            if data:
                buffer[: len(data)] = data
                return len(data)
            if at_end and self._member is not None:
                raise EOFError("it ends before its end marker")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[_Raw, IO[bytes]]]:
    if path.is_dir():
        raise PrunekitError(f"{path} is a folder; give the name of a text file inside it.")
    try:
        # A pipe that nobody writes to must not stop this for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        raise PrunekitError(f"The text file {path} does not exist; check the path.") from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    kind = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind)):
        os.close(descriptor)
        raise PrunekitError(f"{path} is a device, which never ends; give a text file.")
    with _Raw(path, descriptor) as raw:
        try:
            begin = raw.buffered.peek(4)[:4]
        except OSError as error:
            raise _unreadable(path, error) from None
        data: Any = raw.buffered
        if begin.startswith(_GZIP) or path.suffix == ".gz":
            data = io.BufferedReader(_Unzipped(raw.buffered), _PIECE)
        elif begin == _ZSTD:
            data = _zstd(path, raw.buffered)
        yield raw, data


def _zstd(path: Path, packed: IO[bytes]) -> IO[bytes]:
    try:
        import zstandard
    except ImportError:
        raise PrunekitError(
            f"{path} is packed with zstd, and the package zstandard is missing; `pip install zstandard`, or unpack the "
            "file with `zstd -d`."
        ) from None
    # A file may ask for a window of gigabytes.
    return io.BufferedReader(zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(packed))


def _unreadable(path: Path, error: Exception) -> PrunekitError:
    return PrunekitError(f"The text file {path} can't be read: {getattr(error, 'strerror', None) or error}.")


def read_lines(path: Path) -> Iterator[str]:
    """The lines of :func:`read_pieces`, without their ends. Raises PrunekitError where one is too long for a row, or
    a million in a row are blank."""
    held: list[str] = []
    length, number, blank = 0, 1, 0
    for piece in read_pieces(path):
        first, *others = piece.split("\n")
        for count, part in enumerate((first, *others)):
            if count:
                blank = 0 if length else blank + 1
                if blank > _MOST_BLANK_LINES:
                    raise PrunekitError(f"{path} has {blank:,} blank lines before line {number:,}; remove them.")
                yield "".join(held)
                held, length, number = [], 0, number + 1
            held.append(part)
            length += len(part)
            if length > LONGEST_ROW:
                raise PrunekitError(
                    f"Line {number} of {path} is longer than {LONGEST_ROW:,} characters; write one document a line, or "
                    "give a plain text file (.txt)."
                )
    yield "".join(held)
