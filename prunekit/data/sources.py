"""Where text comes from: plain files, rows of texts or chats, Hugging Face datasets, and the prose of CPython."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prunekit.data.chats import Message, NoField, read_row
from prunekit.data.groups import grouped
from prunekit.data.rows import ROW_KINDS, read_rows, row_kind
from prunekit.errors import PrunekitError
from prunekit.utils.files.text_stream import read_pieces
from prunekit.utils.prose import Part, builtin_documents

BUILTIN = "builtin"
WIKITEXT = "wikitext"
# What the model writes itself (prunekit.data.self_generated).
SELF = "self"
_WIKITEXT_ID = "Salesforce/wikitext:wikitext-2-raw-v1"
_DATASET = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")
_FILE_ENDINGS = (".txt", ".md", ".text", ".raw", ".gz", ".zst", *ROW_KINDS)
_BLANK_LINE = re.compile(r"\n\s*\n")
# The longest piece of text that is tokenised at once, in characters: a novel is shorter, so only what is far longer
# than any document of a data set is ever split.
LONGEST_PIECE = 1 << 21
# Rows that are taken together, so that their chats are rendered at once: few at first, since a caller may want no more.
_FIRST_ROWS, _MOST_ROWS = 256, 4096
_MOST_LENGTH = 1 << 21
# Rows without text at the beginning of a file after which the file is taken to hold none.
_MOST_WITHOUT_TEXT = 100_000
_MOST_TRIES = 1000
_log = logging.getLogger("prunekit")

# Makes texts of chats; an error for each chat that is refused.
Render = Callable[[list[list[Message]]], list[str | PrunekitError]]
# What a row holds, and its group.
_Content = tuple[str | list[Message] | None, str | None]


class Piece(NamedTuple):
    """Part of a document, nearly always all of it; ``ends`` where the document ends with it. ``group`` is what its row
    said of itself, where that was asked for."""

    text: str
    ends: bool = True
    group: str | None = None


def source_name(source: str) -> str:
    """``source`` as it may stand in a report: a file by its name alone, so that no report tells where it was made. A
    file that is called as something else that can be asked for is told apart from it."""
    if not is_file(source):
        return source
    name = Path(source).name
    return f"./{name}" if name in (BUILTIN, WIKITEXT, SELF) else name


def text_labels(sources: Sequence[str]) -> list[str]:
    """What each of ``sources`` is called beside the others: files of one name, from several folders, by numbers. The
    :func:`source_name` of a label is that label."""
    made: dict[str, str] = {}
    for source in dict.fromkeys(sources):
        name = source_name(source)
        number = sum(source_name(other) == name for other in made)
        made[source] = f"{name} ({number + 1})" if number else name
    return [made[source] for source in sources]


def is_file(source: str) -> bool:
    """True where ``source`` means a file, whether or not it exists."""
    if source in (BUILTIN, WIKITEXT, SELF):
        return False
    return Path(source).exists() or source.lower().endswith(_FILE_ENDINGS) or _DATASET.fullmatch(source) is None


def is_dataset(source: str) -> bool:
    """True where ``source`` is streamed from the Hugging Face hub."""
    return source not in (BUILTIN, SELF) and not is_file(source)


def has_fields(source: str) -> bool:
    """True where the text lies in a named field of each row."""
    return is_dataset(source) or (is_file(source) and row_kind(source) is not None)


def pieces(
    source: str,
    *,
    field: str = "text",
    split: str = "train",
    part: Part = "calibration",
    render: Render | None = None,
    group: str | None = None,
) -> Iterator[Piece]:
    """The documents of ``source``, one after another, read as they are asked for; those of more than LONGEST_PIECE
    characters in several pieces, split at white space.

    ``source`` is a text file (paragraphs between blank lines are documents), a .jsonl, .json, .csv, .tsv or .parquet
    file (``field`` of each row), packed or not, ``builtin``, ``wikitext``, or the id of a Hugging Face dataset
    (``id:config``, column ``field`` of ``split``). ``part`` chooses between two parts of ``builtin`` that share no
    paragraph. A field may hold a conversation (:func:`prunekit.data.chats.read_row`), which ``render`` makes a text of:
    without it, its messages are joined by empty lines. Rows without text are passed over, and counted on the log.
    ``group`` names the field or column that says which group a row belongs to.
    Raises PrunekitError where it can't be read, or no row says that.
    """
    if source == BUILTIN:
        yield from map(Piece, builtin_documents(part))
    elif not is_file(source):
        rows = _dataset(_WIKITEXT_ID if source == WIKITEXT else source, split)
        yield from _split(_rows(source, field, rows, render, group))
    elif row_kind(source) is not None:
        yield from _split(_rows(source, field, read_rows(Path(source)), render, group))
    else:
        yield from _paragraphs(read_pieces(Path(source)))


def documents(
    source: str, *, field: str = "text", split: str = "train", part: Part = "calibration", render: Render | None = None
) -> Iterator[str]:
    """:func:`pieces` as whole documents, however long each of them is."""
    held: list[str] = []
    for piece in pieces(source, field=field, split=split, part=part, render=render):
        held.append(piece.text)
        if piece.ends:
            yield "".join(held)
            held = []


def text_pieces(
    source: str, *, field: str = "text", split: str = "test", render: Render | None = None
) -> Iterator[str]:
    """All of ``source`` as one run of text, in pieces of at most LONGEST_PIECE characters, split at white space: a text
    file as it stands, documents joined by an empty line otherwise.

    ``builtin`` means its evaluation part. Raises PrunekitError as :func:`pieces` does.
    """
    if is_file(source) and row_kind(source) is None:
        strings = read_pieces(Path(source))
    else:
        strings = _joined(pieces(source, field=field, split=split, part="evaluation", render=render))
    held: list[str] = []
    length = 0
    for string in strings:
        held.append(string)
        length += len(string)
        if length > LONGEST_PIECE:
            *whole, rest = _cut("".join(held))
            yield from whole
            held, length = [rest], len(rest)
    yield "".join(held)


def _joined(parts: Iterator[Piece]) -> Iterator[str]:
    between = ""
    for piece in parts:
        yield between + piece.text
        between = "\n\n" if piece.ends else ""


def _paragraphs(strings: Iterator[str]) -> Iterator[Piece]:
    held = ""
    for string in strings:
        held += string
        # White space at the end may go on.
        most = len(held.rstrip())
        start = 0
        for blank in _BLANK_LINE.finditer(held, 0, most):
            yield from _split([(held[start : blank.start()], None)])
            start = blank.end()
        held = held[start:]
        if len(held) > LONGEST_PIECE:
            *whole, held = _cut(held)
            yield from (Piece(piece, ends=False) for piece in whole)
    for paragraph in _BLANK_LINE.split(held):
        yield from _split([(paragraph, None)])


def _split(texts: Iterable[tuple[str, str | None]]) -> Iterator[Piece]:
    for text, group in texts:
        if len(text) <= LONGEST_PIECE:
            yield Piece(text, group=group)
            continue
        *parts, last = _cut(text)
        yield from (Piece(part, False, group) for part in parts)
        yield Piece(last, group=group)


def _cut(text: str) -> list[str]:
    """``text`` in pieces of at most LONGEST_PIECE characters, cut before a blank between words where there is one in
    the second half: most tokenizers begin a token there anyhow."""
    made, start = [], 0
    while len(text) - start > LONGEST_PIECE:
        place = _between_words(text, start + LONGEST_PIECE // 2, start + LONGEST_PIECE)
        made.append(text[start:place])
        start = place
    return [*made, text[start:]]


def _between_words(text: str, first: int, last: int) -> int:
    for blank in " \n":
        place = last
        for _ in range(_MOST_TRIES):
            place = text.rfind(blank, first + 1, place)
            if place < 0:
                break
            if not text[place - 1].isspace() and not text[place + 1].isspace():
                return place
    return last


def _rows(
    source: str, field: str, rows: Iterator[tuple[str, Any]], render: Render | None, group: str | None
) -> Iterator[tuple[str, str | None]]:
    """The texts of all rows, in their order, and the ``group`` of each; chats are rendered many at a time."""
    found, without = 0, 0
    refusals: list[PrunekitError] = []
    try:
        for some in _batches(_contents(source, field, grouped(source, rows, group))):
            chats = [each for each, _ in some if isinstance(each, list)]
            rendered = iter((render or join_messages)(chats) if chats else [])
            for each, name in some:
                text = next(rendered) if isinstance(each, list) else each
                if isinstance(text, PrunekitError) and not refusals:
                    refusals.append(text)
                if isinstance(text, str):
                    yield text, name
                blank = not isinstance(text, str) or not text.strip()
                found, without = found + (not blank), without + blank
        if not found:
            raise (
                refusals[0]
                if refusals
                else PrunekitError(
                    f"No row of {source} holds text in {field!r}: {without:,} are null or empty. Give a file with text."
                )
            )
    finally:
        if found and without:
            why = f" ({refusals[0]})" if refusals else ""
            _log.warning(
                "%s of the first %s rows of %s hold no text and were passed over%s.",
                f"{without:,}",
                f"{found + without:,}",
                source_name(source),
                why.replace(".)", ")"),
            )


def _batches(rows: Iterator[_Content]) -> Iterator[list[_Content]]:
    batch: list[_Content] = []
    length, most = 0, _FIRST_ROWS
    for each, group in rows:
        batch.append((each, group))
        length += len(each) if isinstance(each, str) else sum(len(turn["content"]) for turn in each or ())
        if len(batch) == most or length > _MOST_LENGTH:
            yield batch
            batch, length, most = [], 0, min(2 * most, _MOST_ROWS)
    if batch:
        yield batch


def _contents(source: str, field: str, rows: Iterator[tuple[str, Any, str | None]]) -> Iterator[_Content]:
    """What each row holds, None where that is nothing, and its group. Rows without the field are an error only where
    none has it."""
    found, without = False, 0
    refusal: str | None = None
    advised = False
    for where, row, group in rows:
        try:
            content = read_row(row, field, where)
        except NoField as error:
            content = None
            # The advice comes from the first row that has something to name.
            if refusal is None or (error.names and not advised):
                refusal, advised = f"{where} {error}.", error.names
        blank = content is None or (isinstance(content, str) and not content.strip())
        found, without = found or not blank, without + blank
        if not found and without >= _MOST_WITHOUT_TEXT:
            break
        yield content, group
    if not found and refusal is not None:
        raise PrunekitError(refusal)


def join_messages(chats: list[list[Message]]) -> list[str | PrunekitError]:
    """Chats as plain text: the messages of each, joined by empty lines."""
    return ["\n\n".join(message["content"] for message in chat) for chat in chats]


def _dataset(source: str, split: str) -> Iterator[tuple[str, Any]]:
    try:
        import datasets
    except ImportError:
        raise PrunekitError(
            f"Reading the dataset {source} needs the package datasets; `pip install datasets`, or give a text file."
        ) from None
    name, _, config = source.partition(":")
    try:
        rows = iter(datasets.load_dataset(name, config or None, split=split, streaming=True))
        row = next(rows, None)
        while row is not None:
            yield f"The dataset {source}", row
            row = next(rows, None)
    except PrunekitError:
        raise
    # The library and its many transports raise whatever they like: no network, no such id, config or split.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise PrunekitError(
            f"{source!r} is no file here, and no Hugging Face dataset of that name could be read (split {split!r}): "
            f"{reason}. Check the name and the network, or give a text file or 'builtin'."
        ) from None
