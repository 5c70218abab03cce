"""nginx and LiteLLM as the examples configure them, where they are installed: two servers, and one of them dies."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from prunekit.monitoring.log.fields import request_of
from prunekit.profiling.loopback.running import free_port
from prunekit.utils.endpoints.answer import Answer
from prunekit.utils.endpoints.client import complete, opened
from prunekit.utils.endpoints.endpoint import Ask, Endpoint
from tests.support.command import ROOT
from tests.support.two_servers import Stand, stop, two_servers

OPERATE = ROOT / "examples" / "operate"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
# LiteLLM's proxy needs a hundred packages: an environment of its own.
LITELLM = os.environ.get("PRUNEKIT_LITELLM")
KEY = f"sk-{secrets.token_hex(32)}"


def answered(port: int, model: str = "assistant", **more: Any) -> tuple[int, str]:
    """The status, and who answered a chat."""
    body = {"model": model, "messages": [{"role": "user", "content": "who?"}], **more}
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read().decode()
    found = re.search(r'"content": ?"(\w+)"', text)
    return answer.status, found[1] if found else text


def until_open(port: int, process: subprocess.Popen[bytes], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
                connection.request("GET", "/health/liveliness")
                connection.getresponse().read()
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail("it did not start")


@contextmanager
def started(argv: list[str], port: int, seconds: float, **options: Any) -> Iterator[None]:
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    try:
        until_open(port, process, seconds)
        yield
    finally:
        process.terminate()
        process.wait(20)


def example(name: str, smaller: Stand, dense: Stand, port: int) -> str:
    """A file of the examples, with the ports of this test."""
    text = (OPERATE / name).read_text()
    for old, new in (("8001", smaller.port), ("8002", dense.port), ("8000", port)):
        assert f"127.0.0.1:{old}" in text
        text = text.replace(f"127.0.0.1:{old}", f"127.0.0.1:{new}")
    return text


@contextmanager
def nginx(folder: Path, smaller: Stand, dense: Stand, share: str = "1%") -> Iterator[int]:
    port = free_port()
    text = example("nginx.conf", smaller, dense, port).replace("/var/log/nginx/", f"{folder}/")
    assert "1%      1;" in text
    text = text.replace("1%      1;", f"{share} 1;" if share != "100%" else "").replace(
        "*       0;", "*  1;" if share == "100%" else "*  0;"
    )
    paths = "".join(f"{each}_temp_path {folder}/{each};\n" for each in ("client_body", "proxy", "fastcgi"))
    text = text.replace("http {", f"http {{\n{paths}uwsgi_temp_path {folder}/u;\nscgi_temp_path {folder}/s;\n", 1)
    config = folder / "nginx.conf"
    config.write_text(text)
    assert NGINX is not None
    told = f"daemon off; master_process off; pid {folder}/pid;"
    argv = [NGINX, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config), "-g", told]
    with started(argv, port, 20):
        yield port


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
class TestNginx:
    def test_the_dense_model_answers_where_the_pruned_one_fails(self, tmp_path: Path) -> None:
        with two_servers() as (smaller, dense), nginx(tmp_path, smaller, dense, "0.01%") as port:
            assert [answered(port) for _ in range(5)] == [(200, "smaller")] * 5
            smaller.status = 503
            assert [answered(port) for _ in range(5)] == [(200, "dense")] * 5
            # What the pruned model's server can't understand, the dense one's can't either.
            smaller.asked.clear()
        with two_servers() as (smaller, dense), nginx(tmp_path, smaller, dense, "0.01%") as port:
            smaller.status = 400
            assert answered(port)[0] == 400
            stop(smaller)
            assert [answered(port) for _ in range(5)] == [(200, "dense")] * 5
            assert answered(port, stream=True) == (200, "dense")
            log = [json.loads(line) for line in (tmp_path / "gateway.jsonl").read_text().splitlines()]
        assert {"ts", "id", "status", "latency_s", "answered_by"} <= log[0].keys()

    def test_a_share_goes_to_the_dense_model_too(self, tmp_path: Path) -> None:
        with two_servers() as (smaller, dense), nginx(tmp_path, smaller, dense, "25%") as port:
            for _ in range(200):
                assert answered(port, n_th=1) == (200, "smaller")
            assert len(smaller.asked) == 200
            mirrored = _settled(dense)
            # 25 % of 200: 50, with a standard deviation of 6.
            assert 20 <= mirrored <= 80
            path, headers, body = dense.asked[0]
            assert path == "/v1/chat/completions" and headers["x-shadow"] == "1" and body["n_th"] == 1
            ids = {headers["x-request-id"] for _, headers, _ in smaller.asked}
            assert {headers["x-request-id"] for _, headers, _ in dense.asked} <= ids

    def test_a_dead_dense_server_disturbs_nobody(self, tmp_path: Path) -> None:
        with two_servers() as (smaller, dense), nginx(tmp_path, smaller, dense, "100%") as port:
            assert answered(port) == (200, "smaller") and _settled(dense) == 1
            stop(dense)
            assert [answered(port) for _ in range(3)] == [(200, "smaller")] * 3


@pytest.mark.skipif(LITELLM is None, reason="PRUNEKIT_LITELLM names no litellm program")
class TestLiteLlm:
    def test_the_dense_model_answers_where_the_pruned_one_fails(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        port = free_port()
        with two_servers() as (smaller, dense):
            config = tmp_path / "litellm.yaml"
            config.write_text(example("litellm.yaml", smaller, dense, port))
            assert LITELLM is not None
            argv = [LITELLM, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
            shutil.copy(OPERATE / "request_log.py", tmp_path)
            log = tmp_path / "requests.jsonl"
            variables = {**os.environ, "LITELLM_MASTER_KEY": KEY, "REQUEST_LOG": str(log)}
            with started(argv, port, 240, cwd=tmp_path, env=variables):
                assert {answered(port) for _ in range(3)} == {(200, "smaller")}
                assert answered(port, stream=True) == (200, "smaller")
                smaller.status = 503
                # Both deployments of it are counted apart.
                assert {answered(port) for _ in range(6)} == {(200, "dense")}
                # Nothing but the dense model is asked while the pruned one cools down.
                before = len(smaller.asked)
                assert answered(port) == (200, "dense") and len(smaller.asked) == before
                stop(smaller)
                assert answered(port) == (200, "dense")
                assert answered(port, stream=True) == (200, "dense")
                # What asks a model says that another one answered.
                monkeypatch.setenv("GATEWAY_KEY", KEY)
                endpoint = Endpoint(f"http://127.0.0.1:{port}", "assistant", "GATEWAY_KEY", api="chat")
                assert asyncio.run(_asked(endpoint)).error == "another model answered"
                lines = _logged(log, 6)
        # The dense model's answers are no part of it.
        assert [line.get("answer") for line in lines[:4]] == ["smaller"] * 4
        assert {line["finish_reason"] for line in lines[:4]} == {"stop"} and "ttft_ms" in lines[3]
        assert {line["finish_reason"] for line in lines[4:]} == {"error"}
        made = [request_of(line, b"", pytest.fail) for line in lines]
        assert all(each is not None and each.messages == (("user", "who?"),) for each in made)
        assert made[0] is not None and (made[0].n_in, made[0].n_out) == (1, 1) and made[0].latency_ms


async def _asked(endpoint: Endpoint) -> Answer:
    async with opened(endpoint) as client:
        return await complete(client, endpoint, Ask("who?", max_tokens=4))


def _logged(log: Path, least: int) -> list[dict[str, Any]]:
    """The lines of a log, once there are so many: LiteLLM writes after it has answered."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and (not log.exists() or log.read_text().count("\n") < least):
        time.sleep(0.1)
    return [json.loads(line) for line in log.read_text().splitlines()]


def _settled(stand: Stand) -> int:
    """How many requests came, once no more come."""
    count = -1
    while count != len(stand.asked):
        count = len(stand.asked)
        time.sleep(0.3)
    return count
