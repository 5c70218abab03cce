"""Where text comes from: plain files, JSONL, Hugging Face datasets, and the prose every CPython carries."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

from prunekit.errors import PrunekitError
from prunekit.files import is_endless

BUILTIN = "builtin"
WIKITEXT = "wikitext"
# What the model writes itself (prunekit.self_text).
SELF = "self"
_WIKITEXT_ID = "Salesforce/wikitext:wikitext-2-raw-v1"
_DATASET = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")
_FILE_ENDINGS = (".txt", ".md", ".text", ".gz", ".jsonl", ".json", ".raw")

Part = Literal["calibration", "evaluation"]


def source_name(source: str) -> str:
    """``source`` as it may stand in a report: a file by its name alone, so that no report tells where it was made."""
    return Path(source).name if _is_file(source) else source


def _is_file(source: str) -> bool:
    """True where ``source`` means a file, whether or not it exists."""
    if source in (BUILTIN, WIKITEXT, SELF):
        return False
    return Path(source).exists() or source.endswith(_FILE_ENDINGS) or _DATASET.fullmatch(source) is None


def is_dataset(source: str) -> bool:
    """True where ``source`` is streamed from the Hugging Face hub."""
    return source not in (BUILTIN, SELF) and not _is_file(source)


def documents(source: str, *, field: str = "text", split: str = "train", part: Part = "calibration") -> Iterator[str]:
    """The documents of ``source``, one after another, read lazily where it is a dataset.

    ``source`` is a text file (paragraphs between blank lines are documents) or .jsonl file (``field`` of each line),
    either of them gzipped or not, ``builtin``, ``wikitext``, or the id of a Hugging Face dataset (``id:config``, column
    ``field`` of ``split``). ``part`` chooses between two parts of ``builtin`` that share no paragraph.
    Raises PrunekitError where it can't be read.
    """
    if source == BUILTIN:
        yield from builtin_documents(part)
    elif not _is_file(source):
        yield from _dataset(_WIKITEXT_ID if source == WIKITEXT else source, field, split)
    elif _is_jsonl(source):
        yield from _jsonl(Path(source), field)
    else:
        yield from re.split(r"\n\s*\n", read_file(Path(source)))


def whole_text(source: str, *, field: str = "text", split: str = "test") -> str:
    """All of ``source`` as one string: a text file as it stands, documents joined by an empty line otherwise.

    ``builtin`` means its evaluation part. Raises PrunekitError as :func:`documents` does.
    """
    if _is_file(source) and not _is_jsonl(source):
        return read_file(Path(source))
    return "\n\n".join(documents(source, field=field, split=split, part="evaluation"))


def has_fields(source: str) -> bool:
    """True where the text lies in a named field of each row."""
    return is_dataset(source) or _is_jsonl(source)


def _is_jsonl(source: str) -> bool:
    return source.endswith((".jsonl", ".jsonl.gz", ".json", ".json.gz"))


def read_file(path: Path) -> str:
    """A UTF-8 text file, gzipped or not, with line ends as ``\\n``. Raises PrunekitError in one sentence."""
    if path.is_dir():
        raise PrunekitError(f"{path} is a folder; give the name of a text file inside it.")
    if is_endless(path):
        raise PrunekitError(f"{path} is a device, which never ends; give a text file.")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise PrunekitError(f"The text file {path} does not exist; check the path.") from None
    except OSError as error:
        raise PrunekitError(f"The text file {path} can't be read: {error.strerror or error}.") from None
    if path.suffix == ".gz" or data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise PrunekitError(f"{path} is not a whole gzip file ({error}); make or download it again.") from None
    if b"\0" in data[:65536] and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise PrunekitError(f"{path} is a binary file; give a plain text (.txt), .jsonl or gzipped text file.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PrunekitError(
            f"{path} is not UTF-8 text (byte {error.start} does not fit); convert it, for example with "
            "`iconv -f LATIN1 -t UTF-8`."
        ) from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise PrunekitError(f"The text file {path} is empty; give one that holds text.")
    # A lone surrogate, which JSON can spell, is no character and can't be encoded.
    return text.encode("utf-8", "replace").decode()


def _jsonl(path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(read_file(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: not JSON, or a number of thousands of digits
            raise PrunekitError(f"Line {number} of {path} is not valid JSON ({error}); mend or remove it.") from None
        if not isinstance(row, dict):
            raise PrunekitError(
                f'Line {number} of {path} is not a JSON object; write each line as {{"{field}": "..."}}.'
            )
        yield _column(row, field, f"Line {number} of {path}")


def _column(row: dict[str, Any], field: str, where: str) -> str:
    if field not in row:
        raise PrunekitError(
            f"{where} has no field {field!r}; it has {', '.join(sorted(row)) or 'none'}. Name one of those."
        )
    text = row[field]
    if not isinstance(text, str):
        raise PrunekitError(f"{where} holds no text in {field!r} but {type(text).__name__}; name a field with text.")
    # A lone surrogate, which JSON can spell, is no character and can't be encoded.
    return text.encode("utf-8", "replace").decode()


def _dataset(source: str, field: str, split: str) -> Iterator[str]:
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
            yield _column(row, field, f"The dataset {source}")
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


@cache
def builtin_documents(part: Part) -> tuple[str, ...]:
    """The prose of the Python language reference as CPython ships it for ``help()``: about 55,000 tokens of English.

    Every fifth topic is for evaluation; the rest, less the paragraphs that stand there too, for calibration.
    The text differs a little between Python versions, so its SHA-256 belongs in every report.
    Raises PrunekitError where the interpreter was shipped without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise PrunekitError(
            "This Python was shipped without pydoc_data, which the built-in text comes from; give a text file instead."
        ) from None
    paragraphs = {name: _prose(topics[name]) for name in sorted(topics)}
    held_out = set(sorted(topics)[2::5])
    seen: set[str] = set()
    made: dict[Part, list[str]] = {"calibration": [], "evaluation": []}
    # Topics repeat each other; what the evaluation part holds is seen before the calibration part is made.
    for name in sorted(topics, key=lambda name: (name not in held_out, name)):
        fresh = [paragraph for paragraph in paragraphs[name] if paragraph not in seen]
        seen.update(fresh)
        if fresh:
            made["evaluation" if name in held_out else "calibration"].append("\n\n".join(fresh))
    return tuple(made[part])


_CODE = re.compile(r"""::=|>>>|\+---|\.\.\. |={3}|\*{3}|(^|\s)['"]{3}|#\s""")
# A letter, perhaps after a bullet, a number or a footnote mark, and quotes or emphasis.
_SENTENCE = re.compile(r"""([*]|\d+\.|\[\d+\])?\s*["*“(]*[A-Za-z]""")


def _prose(topic: str) -> list[str]:
    """The paragraphs of a topic that read as sentences, unwrapped; headings, code, grammar and tables are left out."""
    kept = []
    for block in re.split(r"\n\s*\n", topic):
        text = " ".join(line.strip() for line in block.splitlines())
        if len(text.split()) < 8 or not text.endswith((".", ":", "?", "!", ")", '"')):
            continue
        if _CODE.search(text) or not _SENTENCE.match(text):
            continue
        # Code and signatures are dense in symbols; English is letters and spaces.
        if sum(char.isalpha() or char.isspace() for char in text) / len(text) >= 0.85:
            kept.append(text)
    return kept
