"""Load tests of a gateway behind which another model answers."""

from __future__ import annotations

from typing import Any

import pytest

from prunekit.errors import PrunekitError
from prunekit.profiling.server.config import ServerConfig, Slo
from prunekit.profiling.server.report import ServerReport
from prunekit.profiling.server.run import bench_server
from tests.support.scripted_server import Script, answer, scripted


def load_test(url: str, baseline: str | None = None, **settings: Any) -> ServerReport:
    usual: dict[str, Any] = {"requests": 8, "blocks": 2, "concurrency": (1,), "rates": (), "tokens": 3, "warmup": 3}
    config = ServerConfig(**{**usual, "natural_tokens": 0, "max_minutes": 0.2, "timeout": 1.0, **settings})
    return bench_server(url, baseline=baseline, config=config)


def of_dense(made: Script) -> Script:
    return Script(tuple((wait, data.replace(b'"scripted"', b'"dense"')) for wait, data in made.pieces))


def paced(body: dict[str, Any]) -> Script:
    return answer(body["max_tokens"], ttft=0.005, tpot=0.001)


def test_a_load_that_a_fallback_answered_in_part_is_void() -> None:
    with scripted(lambda body, number: of_dense(paced(body)) if number % 5 == 4 else paced(body)) as server:
        made = load_test(server.url, slo=Slo(ttft=500))
    result = made.loads[0].results[0]
    others = result.errors["another model answered"]
    assert result.failed == others > 0 and made.stopped == ""
    assert result.void[-1].startswith(f"Another model answered {others} of 8 requests: measure the server itself")
    assert made.capacity is not None and made.capacity.void and not made.believed


def test_a_gateway_that_never_asks_the_model_is_refused() -> None:
    said = r"answered none of the first 3 requests: another model answered \(dense in place of scripted\)"
    with scripted(lambda body, _: of_dense(paced(body))) as server, pytest.raises(PrunekitError, match=said):
        load_test(server.url)


def test_a_model_is_not_compared_with_itself() -> None:
    with scripted(lambda body, _: paced(body)) as server:
        with pytest.raises(PrunekitError, match="are both 'scripted' of"):
            load_test(server.url, server.url.replace("127.0.0.1", "localhost"))
        assert not server.seen
