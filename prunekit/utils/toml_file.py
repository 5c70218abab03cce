"""A TOML file of the user's."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.utils.files.strict_json import read_regular

_MOST_BYTES = 1 << 18


def read_toml(path: Path, what: str, example: str) -> dict[str, Any]:
    """The table in the TOML file ``path``. ``what`` names it at the beginning of errors, and ``example`` is a line that
    it may hold. Raises PrunekitError where it can't be read, or is no TOML."""
    try:
        return dict(_toml().loads(read_regular(path, _MOST_BYTES).decode("utf-8-sig")))
    except FileNotFoundError:
        raise PrunekitError(f"{what} does not exist; check the path.") from None
    except IsADirectoryError:
        raise PrunekitError(f"{what} is a folder; give the TOML file inside it.") from None
    except RecursionError:
        raise PrunekitError(f"{what} is nested too deep; it holds lines such as {example}.") from None
    except ValueError as error:  # not UTF-8, not TOML, or longer than any such file
        raise PrunekitError(f"{what} is not valid TOML ({error}); its lines are as {example}.") from None
    except OSError as error:
        raise PrunekitError(f"{what} can't be read: {error.strerror or error}.") from None


def _toml() -> Any:
    """Python's own reader, which came with 3.11, or the package that it was made of."""
    for name in ("tomllib", "tomli"):
        try:
            return import_module(name)
        except ModuleNotFoundError:
            continue
    raise PrunekitError("A TOML file needs Python 3.11 or newer, or the package tomli: run `pip install tomli`.")
