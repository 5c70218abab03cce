"""Values of a JSON object that may be anybody's, each asked for with its kind: what is wrong is said in a sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.utils.names import printable, readable

# More than any name, text or list that prunekit writes. A page that holds more is read by nobody.
_NAME, _TEXT, _LIST = 300, 20_000, 2_000
_LARGEST = 1e300


class Fields:
    """The object ``data`` at ``where`` of a file called ``file``. null is as good as missing."""

    def __init__(self, data: Any, file: str, where: str = "") -> None:
        if not isinstance(data, Mapping):
            raise PrunekitError(_wrong(file, where or "it", data, "an object"))
        self.data, self.file, self.where = data, file, where

    def __contains__(self, name: str) -> bool:
        return self.data.get(name) is not None

    def number(self, name: str, least: float = 0.0, most: float = _LARGEST) -> float:
        """A finite number from ``least`` to ``most``. Raises PrunekitError where it is missing or something else."""
        found = self.maybe(name, least, most)
        if found is None:
            raise self._lacks(name)
        return found

    def maybe(self, name: str, least: float = 0.0, most: float = _LARGEST) -> float | None:
        """:meth:`number`, or None where there is none."""
        value = self.data.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(name, "a finite number")
        if not least <= value <= most:
            bound = f"at least {least:g}" if value < least else f"at most {most:g}"
            raise self.wrong(name, f"a number of {bound}")
        # A whole number beyond 2^53 is no size of anything, and is rounded.
        return float(value) if isinstance(value, float) or abs(value) > 2**53 else value

    def count(self, name: str, least: int = 0) -> int:
        """A whole number."""
        value = self.number(name, least)
        if value != int(value):
            raise self.wrong(name, "a whole number")
        return int(value)

    def text(self, name: str, default: str | None = None) -> str:
        """A name on one line, not longer than names are. Raises PrunekitError where it is none, or missing without a
        ``default``."""
        value = self.data.get(name)
        if value is None and default is not None:
            return default
        if value is None:
            raise self._lacks(name)
        return self._checked(name, value)

    def maybe_text(self, name: str) -> str | None:
        return self._checked(name, self.data[name]) if name in self else None

    def prose(self, name: str) -> str:
        """A text of several lines; what is longer than anyone reads loses its end."""
        value = self.data.get(name)
        if value is None:
            raise self._lacks(name)
        if not isinstance(value, str):
            raise self.wrong(name, "a text")
        return readable(value if len(value) <= _TEXT else value[:_TEXT] + " …")

    def flag(self, name: str) -> bool | None:
        value = self.data.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def object(self, name: str) -> Fields:
        """The object of that name. Raises PrunekitError where there is none."""
        if name not in self:
            raise self._lacks(name)
        return Fields(self.data[name], self.file, self._path(name))

    def maybe_object(self, name: str) -> Fields | None:
        return self.object(name) if name in self else None

    def objects(self, name: str, most: int = _LIST) -> Iterator[Fields]:
        """The objects of a list; none where it is missing."""
        for place, value in enumerate(self.values(name, most)):
            yield Fields(value, self.file, f"{self._path(name)}[{place}]")

    def texts(self, name: str, most: int = _LIST) -> tuple[str, ...]:
        return tuple(self._checked(name, value) for value in self.values(name, most))

    def values(self, name: str, most: int = _LIST) -> list[Any]:
        value = self.data.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(name, "a list")
        if len(value) > most:
            raise PrunekitError(
                f"{self.file} lists {len(value):,} entries in {self._path(name)}, where at most {most:,} can be shown; "
                "give a file with fewer."
            )
        return value

    def wrong(self, name: str, expected: str) -> PrunekitError:
        return PrunekitError(_wrong(self.file, self._path(name), self.data.get(name), expected))

    def _checked(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self.wrong(name, "a text")
        return clipped(value)

    def _lacks(self, name: str) -> PrunekitError:
        return PrunekitError(f"{self.file} lacks {self._path(name)}; make it again, or leave it out.")

    def _path(self, name: str) -> str:
        return printable(f"{self.where}.{name}" if self.where else name)[:_NAME]


def clipped(name: str, most: int = _NAME) -> str:
    """A name or sentence on one line, without the end that nobody would read."""
    return printable(name if len(name) <= most else name[:most] + "…")


def _wrong(file: str, where: str, value: Any, expected: str) -> str:
    kind = {list: "a list", dict: "an object", type(None): "nothing"}.get(type(value))
    return (
        f"{file} holds {kind or printable(str(value)[:60])} as {printable(where)[:_NAME]}, where {expected} is "
        "expected; make it again, or leave it out."
    )
