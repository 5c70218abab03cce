"""Which reader a file is for: told by what is in it, never by its name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.report.facts.claims import FileSaid
from prunekit.report.facts.fields import Fields, clipped
from prunekit.report.readers.place import Place
from prunekit.utils.files.listed_folder import is_plain
from prunekit.utils.files.replacing import CHECKPOINT, EXPORT, PROFILE
from prunekit.utils.files.strict_json import parse, read_regular
from prunekit.utils.names import printable

# Modules below this folder, each imported when it is asked. The first that knows a file reads it.
READERS = (
    "candidates",
    "plan",
    "analysis",
    "checkpoint",
    "export",
    "bench",
    "edge_bench",
    "evaluation",
    "made",
    "servers.vllm",
    "servers.aiperf",
    "servers.guidellm",
    "operate.server_bench",
    "operate.accept",
    "operate.watch",
)
_MANIFESTS = (CHECKPOINT.manifest, EXPORT.manifest, "candidates.json")
# What accept and watch run write into their folders.
_RESULTS = ("accept.json", "watch.json")
_MOST_FILES = 200
WANTED = (
    "Give JSON of prunekit candidates, eval, bench, bench-server, plan, analyze, prune --json or recover --json, a "
    "folder that prune, recover, export, candidates, accept or watch run wrote, or a result of vLLM, AIPerf or "
    "guidellm."
)


def read_files(paths: Sequence[Path]) -> tuple[FileSaid, ...]:
    """What each of ``paths`` says, in their order; files of one name are told apart by numbers.

    Raises PrunekitError, in a sentence that names the file, where one can't be read, is of no known kind, or holds
    values that its kind never has.
    """
    found = [each for path in paths for each in _expanded(path)]
    if not found:
        raise PrunekitError(f"There is no file to report on. {WANTED}")
    if len(found) > _MOST_FILES:
        raise PrunekitError(f"A report of {len(found):,} files is read by nobody; give at most {_MOST_FILES}.")
    places = [Place(name, path) for name, path in zip(_names(found), found, strict=True)]
    return tuple(map(_read, places))


def _expanded(path: Path) -> list[Path]:
    """The files that ``path`` stands for: itself, or those of a folder."""
    if not path.is_dir():
        return [path]
    if (path / PROFILE.manifest).is_file():
        said = _json(path / PROFILE.manifest, str(path))[1]
        named = said.get("exports") if isinstance(said, dict) else None
        if not isinstance(named, list) or not all(isinstance(each, str) and is_plain(each) for each in named):
            raise PrunekitError(f"{path / PROFILE.manifest} is damaged; export the profile again.")
        return [path / each / EXPORT.manifest for each in named]
    for manifest in _MANIFESTS:
        if (path / manifest).is_file():
            return [path / manifest]
    if found := [path / name for name in _RESULTS if (path / name).is_file()]:
        return found
    raise PrunekitError(f"The folder {path} holds nothing that a report is made of. {WANTED}")


def _names(paths: Sequence[Path]) -> Iterator[str]:
    """What each is called in the report: without its folder, unless prunekit wrote that folder, where files are always
    called alike."""
    seen: dict[str, int] = {}
    for path in paths:
        folder = path.absolute().parent
        inside = any((folder / manifest).is_file() for manifest in _MANIFESTS)
        name = clipped(f"{folder.name}/{path.name}" if inside else path.name)
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name} ({seen[name]})"


def _read(place: Place) -> FileSaid:
    raw, data = _json(place.path, str(place.path))
    if not isinstance(data, dict):
        raise PrunekitError(f"{place.path} holds no JSON object. {WANTED}")
    if set(data) <= {"error", "format"} and isinstance(data.get("error"), str):
        raise PrunekitError(
            f"{place.path} holds the error of a command ({printable(data['error'][:200])}); run that command again."
        )
    for name in READERS:
        reader = import_module(f"{__package__}.{name}")
        if reader.recognises(data):
            try:
                return FileSaid(
                    place.name, hashlib.sha256(raw).hexdigest(), reader.read(Fields(data, place.name), place)
                )
            except (OverflowError, RecursionError) as error:
                raise PrunekitError(f"{place.path} holds what no such file has ({error}); make it again.") from None
    told = data.get("format")
    kind = f" (it says that it is {printable(told[:60])!r})" if isinstance(told, str) else ""
    raise PrunekitError(f"{place.path} is of no kind that a report knows{kind}. {WANTED}")


def _json(path: Path, name: str) -> tuple[bytes, Any]:
    try:
        raw = read_regular(path)
    except FileNotFoundError:
        raise PrunekitError(f"The file {name} does not exist; check the path.") from None
    except ValueError as error:
        raise PrunekitError(f"{name} can't be read: {error}.") from None
    except OSError as error:
        raise PrunekitError(f"{name} can't be read: {error.strerror or error}.") from None
    try:
        text = raw.decode("utf-8-sig")
        return raw, _parsed(text)
    except ValueError as error:
        raise PrunekitError(f"{name} is no valid JSON ({printable(str(error))}). {WANTED}") from None


def _parsed(text: str) -> Any:
    try:
        return parse(text)
    except ValueError:
        # What recover --json printed: a line for each step, and the result on the last one.
        lines = text.strip().splitlines()
        last: Any = None
        if len(lines) > 1 and lines[0].startswith("{") and lines[0].rstrip().endswith("}"):
            try:
                last = parse(lines[-1])
            except ValueError:
                last = None
        if isinstance(last, Mapping) and "checkpoint" in last:
            return last
        raise
