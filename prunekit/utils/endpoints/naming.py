"""How a server's model is called where others will read it."""

from __future__ import annotations

import re

from prunekit.utils.names import printable

_PATH = re.compile(r"[/\\~]|\.{1,2}[/\\]|[A-Za-z]:[/\\]|file:", re.IGNORECASE)


def shown_model(name: str) -> str:
    """A model's id, as a server tells it or is asked for it, for reports and tables: of a path the last part, so that
    none tells where it lies; anything else (``organisation/model``) as it is."""
    parts = [each for each in re.split(r"[/\\]", name) if each not in ("", ".", "..", "~")]
    return printable(parts[-1] if parts and _PATH.match(name) else name)
