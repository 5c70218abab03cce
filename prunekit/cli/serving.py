"""Local models behind servers of their own, for a command that asks servers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prunekit.utils.endpoints.endpoint import Endpoint

_LEAST, _ROOM = 2048, 256


@contextmanager
def behind_servers(models: Sequence[str], kind: str, context: int) -> Iterator[list[Endpoint | str]]:
    """Each of ``models`` as the endpoint of a server of ``kind`` on 127.0.0.1 while the block runs; what is an address
    stays. ``context`` is in tokens. Raises PrunekitError where one can't be served."""
    from prunekit.profiling.loopback import served
    from prunekit.utils.endpoints.endpoint import Endpoint

    with ExitStack() as stack:
        made: list[Endpoint | str] = []
        for each in models:
            if each.lower().startswith(("http://", "https://")):
                made.append(each)
                continue
            server = stack.enter_context(served(each, kind=kind, context=context))
            known = server.identity
            made.append(
                Endpoint(server.url, server.model, slots=known.slots, sha256=known.model_sha256, server=known.server)
            )
        yield made


def context_for(records: Path, new_tokens: int) -> int:
    """Tokens of context that are enough for each record of a file and its answer, of ``new_tokens`` where it does not
    say how many: a token has at least one byte. Raises PrunekitError where a record is broken."""
    from prunekit.evaluation.acceptance.records import read_records

    needs = [
        len(json.dumps(each.asked, ensure_ascii=False).encode()) + (each.max_tokens or new_tokens)
        for each in read_records(records).all
    ]
    return max(_LEAST, max(needs) + _ROOM)
