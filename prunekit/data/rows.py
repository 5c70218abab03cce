"""Files of rows: JSONL, JSON, CSV, TSV and Parquet, read one row at a time."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.utils.files.text_stream import LONGEST_ROW, check_growth, read_lines, read_pieces

_PACKED = (".gz", ".zst")
ROW_KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_MOST_COLUMNS = 1 << 14
# Of a Parquet row, which may hold more than its text.
_MOST_ROW_BYTES = 4 * LONGEST_ROW
_BETWEEN = re.compile(r"[\s,]*")


def row_kind(source: str) -> str | None:
    """The ending that says how rows lie in ``source``, such as ``.jsonl`` (of ``a.jsonl.gz`` too); None for text."""
    name = source.lower()
    for ending in _PACKED:
        name = name.removesuffix(ending)
    return next((ending for ending in ROW_KINDS if name.endswith(ending)), None)


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Each row with words that say where it stands, such as "Line 3 of a.jsonl". A row of JSON is any JSON value.

    Raises PrunekitError where the file can't be read, or a row is broken or longer than LONGEST_ROW characters.
    """
    kind = row_kind(path.name)
    if kind in (".csv", ".tsv"):
        yield from _csv(path, kind)
    elif kind == ".parquet":
        yield from _parquet(path)
    else:
        yield from _json(path)


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    lines = read_lines(path)
    if row_kind(path.name) == ".json":
        pieces = read_pieces(path) if path.is_file() else None
        first = next(pieces, "") if pieces else ""
        if first.lstrip().startswith("["):
            yield from _entries(path)
            return
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"Line {number} of {path}", _parsed(line, f"Line {number} of {path}")


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, or a number of thousands of digits
        raise PrunekitError(f"{where} is not valid JSON ({error}); mend or remove it.") from None


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """The entries of a JSON array, however its lines are broken."""
    decoder = json.JSONDecoder()
    pieces = read_pieces(path)
    held = next(pieces).lstrip()
    place, number = 1, 1
    while True:
        where = f"Entry {number} of {path}"
        between = _BETWEEN.match(held, place)
        place = between.end() if between else place
        if held.startswith("]", place):
            return
        reason = "it is cut short"
        try:
            value, end = decoder.raw_decode(held, place)
        except (ValueError, RecursionError) as error:
            reason, end = str(error), len(held)
        # What reaches the end of a piece may go on in the next.
        if end == len(held):
            more = next(pieces, None)
            if more is None:
                raise PrunekitError(f"{where} is not valid JSON ({reason}); mend or remove it.")
            held, place = held[place:] + more, 0
            if len(held) > LONGEST_ROW + len(more):
                raise PrunekitError(f"{where} is not valid JSON, or longer than {LONGEST_ROW:,} characters ({reason}).")
            continue
        yield where, value
        place, number = end, number + 1


def _csv(path: Path, kind: str) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_ROW))
    lines = _Lines(path)
    header = next((line for line in lines if line.strip()), "")
    # Spreadsheets write semicolons where the comma is the decimal mark.
    delimiter = "\t" if kind == ".tsv" else max(",;\t", key=header.count)
    try:
        names = next(csv.reader([header], delimiter=delimiter))
        if len(names) > _MOST_COLUMNS:
            raise PrunekitError(f"{path} has {len(names):,} columns, and at most {_MOST_COLUMNS:,} are read.")
        lines.begin_row()
        reader = csv.reader(lines, delimiter=delimiter)
        for cells in reader:
            lines.begin_row()
            # As pandas and datasets read it, an empty cell is no value.
            row = {name: cell or None for name, cell in zip(names, cells, strict=False)}
            if cells:
                yield f"The row that ends in line {reader.line_num + 1} of {path}", {**dict.fromkeys(names), **row}
    except csv.Error as error:
        raise PrunekitError(
            f"{path} is no CSV file that can be read ({error}); a quotation mark may be left open. Mend it, or write "
            'JSONL: {"text": "..."} in each line.'
        ) from None


class _Lines:
    """The lines of a CSV file. A row may have many, between quotation marks, but not without end."""

    def __init__(self, path: Path):
        self._path, self._lines, self._held = path, read_lines(path), 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._held += len(line) + 1
        if self._held > 2 * LONGEST_ROW:
            raise PrunekitError(
                f"A row of {self._path} is longer than {LONGEST_ROW:,} characters; a quotation mark may be left open."
            )
        return line + "\n"

    def begin_row(self) -> None:
        self._held = 0


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    if not path.is_file():
        missing = f"The file {path} does not exist; check the path."
        raise PrunekitError(f"{path} is no regular file; give a Parquet file." if path.exists() else missing)
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            about = file.metadata
            for group in map(about.row_group, range(about.num_row_groups)):
                for column in range(group.num_columns):
                    check_growth(path, path.stat().st_size, group.column(column).total_uncompressed_size)
            # A text that is stored once may be the value of every row.
            for batch in file.iter_batches(batch_size=1):
                number += 1
                if batch.nbytes > _MOST_ROW_BYTES:
                    raise PrunekitError(
                        f"Row {number} of {path} has {batch.nbytes:,} bytes; split its text, or give a plain text file "
                        "(.txt)."
                    )
                for row in batch.to_pylist():
                    yield f"Row {number} of {path}", row
    except (PrunekitError, MemoryError):
        raise
    except Exception as error:  # pyarrow has an error type for each kind of damage, and OSError
        raise PrunekitError(
            f"{path} is not a Parquet file that can be read ({error}); make or download it again."
        ) from None
