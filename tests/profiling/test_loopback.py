"""Servers on 127.0.0.1: the two real ones with tiny models, and a scripted one for what goes wrong."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from prunekit.errors import PrunekitError
from prunekit.profiling.loopback import Server, served
from prunekit.profiling.loopback import commands as commands_module
from prunekit.profiling.loopback import installed as installed_module
from prunekit.profiling.loopback import serve as serve_module
from prunekit.profiling.loopback.commands import server_environment
from prunekit.profiling.loopback.models import opened
from prunekit.profiling.loopback.running import check_port, free_port
from prunekit.utils.files.hashes import sha256
from tests.support.command import ROOT, save_tiny
from tests.support.export_models import save_uneven
from tests.support.tiny_gguf import write_tiny_gguf
from tests.support.warm import Warm

EXPORT = ROOT / "tests" / "golden" / "written" / "exports" / "gguf"


def asked(server: Server, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    """The status and the JSON that ``server`` answers."""
    with closing(http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)) as connection:
        if body is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def addresses(server: Server) -> set[str]:
    """Where the server's processes listen."""
    first = psutil.Process(server.pid)
    found = [each for one in (first, *first.children(recursive=True)) for each in one.net_connections("inet")]
    return {each.laddr.ip for each in found if each.status == psutil.CONN_LISTEN}


def gone(pid: int) -> bool:
    """Whether a process ends within seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_llama_cpp_answers_on_this_machine_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in installed_module._OF_LLAMA:
        pytest.importorskip(package)
    monkeypatch.setattr(commands_module, "llama_server", lambda: None)
    # What stands for something else in a user's environment must not move it, or ask for a key.
    for name, value in {"HOST": "0.0.0.0", "PORT": "1", "API_KEY": "secret", "model": "other", "N_CTX": "0"}.items():
        monkeypatch.setenv(name, value)
    file = write_tiny_gguf(tmp_path / "two words.gguf")
    with served(file, threads=1, context=64, log=tmp_path / "log.txt") as server:
        assert server.model == server.identity.model == "two-words" and addresses(server) == {"127.0.0.1"}
        status, told = asked(server, "/v1/models")
        assert status == 200 and [each["id"] for each in told["data"]] == ["two-words"]
        body = {"model": server.model, "prompt": "w1", "max_tokens": 3, "temperature": 0}
        status, told = asked(server, "/v1/completions", body)
        assert status == 200 and told["usage"]["completion_tokens"] <= 3
        identity = server.identity.to_dict()
        pid = server.pid
    assert gone(pid) and "Uvicorn running" in (tmp_path / "log.txt").read_text()
    assert identity["server"] == "llama_cpp.server" and identity["model_sha256"] == sha256(file)
    assert (identity["slots"], identity["threads"], identity["context"]) == (1, 1, 64)
    assert str(tmp_path) not in json.dumps(identity) and "two words.gguf" in identity["argv"]
    assert "PORT" in identity["argv"] and identity["version"]


def test_transformers_serves_layers_that_differ_without_their_code(tmp_path: Path) -> None:
    for package in installed_module._OF_TRANSFORMERS:
        pytest.importorskip(package)
    folder = save_uneven(tmp_path / "pruned@1", "llama")
    save_tiny(tmp_path / "other").joinpath("tokenizer.json")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tmp_path / "other" / name).read_bytes())
    ran = tmp_path / "ran"
    for file in folder.glob("*.py"):
        file.write_text(f"open({str(ran)!r}, 'w')\nraise SystemExit(7)\n")
    with served(folder, kind="transformers", threads=1, device="cpu") as server:
        assert server.model == "pruned-1" and addresses(server) == {"127.0.0.1"}
        body = {"model": server.model, "prompt": "Once", "max_tokens": 3, "temperature": 0}
        status, told = asked(server, "/v1/completions", body)
        assert status == 200 and told["usage"]["completion_tokens"] <= 3
        pid, identity = server.pid, server.identity
    assert gone(pid) and not ran.exists()
    assert identity.argv[:3] == ("transformers", "serve", "pruned-1") and len(identity.model_sha256) == 64


SCRIPTED = """
import http.server, sys, time
mode, port = sys.argv[1], int(sys.argv[2])
print("about to", mode, "/home/somebody/model.gguf", "\\x1b[31m", flush=True)
if mode == "die":
    sys.exit(3)
if mode == "taken":
    sys.exit("[Errno 98] error while attempting to bind: Address already in use")
if mode == "stall":
    time.sleep(600)
class Answer(http.server.BaseHTTPRequestHandler):
    def log_message(self, *values):
        pass
    def do_GET(self):
        self.send_response(503 if mode == "busy" else 200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", port), Answer).serve_forever()
"""


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``served`` with a program in place of a server: it does what its first argument says."""
    file = write_tiny_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(serve_module, "check_installed", lambda kind: None)
    ports: list[int] = []

    @contextmanager
    def start(*modes: str, **options: Any) -> Iterator[Server]:
        def command(model: Any, wanted: Any, folder: Path) -> commands_module.Command:
            mode = modes[min(len(ports), len(modes) - 1)]
            ports.append(wanted.port)
            argv = commands_module.python_command(code=SCRIPTED, arguments=[mode, str(wanted.port)])
            return commands_module.Command(argv, ("scripted",), "the scripted server", "1", "/health", 1)

        monkeypatch.setattr(serve_module, "command_of", command)
        with served(file, **options) as server:
            yield server

    start.ports = ports  # type: ignore[attr-defined]
    return start


def test_a_server_that_ends_at_once_is_told_with_its_last_lines(scripted: Any) -> None:
    with pytest.raises(PrunekitError) as error, scripted("die"):
        pass
    said = str(error.value)
    assert "the scripted server ended with code 3 before it was ready; its last lines: about to die" in said
    assert "model.gguf" in said and "/home" not in said and "\x1b" not in said


@pytest.mark.parametrize("mode", ["stall", "busy"])
def test_a_server_that_never_gets_ready_is_ended(scripted: Any, mode: str) -> None:
    begin = time.monotonic()
    with (
        pytest.raises(PrunekitError, match=r"was not ready within 4 s; its last lines: about to"),
        scripted(mode, limit=4),
    ):
        pass
    assert time.monotonic() - begin < 30
    assert not _listens(scripted.ports[0])


def test_a_port_that_another_program_took_first_is_changed(scripted: Any) -> None:
    with scripted("taken", "answer") as server:
        assert server.url.endswith(str(scripted.ports[-1])) and len(scripted.ports) == 2
    scripted.ports.clear()
    with pytest.raises(PrunekitError, match=r"(?i)address already in use"), scripted("taken"):
        pass
    assert len(scripted.ports) == 3


def test_an_error_in_the_block_ends_the_server(scripted: Any) -> None:
    with pytest.raises(KeyboardInterrupt), scripted("answer") as server:
        pid = server.pid
        raise KeyboardInterrupt
    assert gone(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_server_outlives_the_run(tmp_path: Path, number: int) -> None:
    code = f"""
    import sys, time
    from pathlib import Path
    from prunekit.profiling.loopback.commands import python_command
    from prunekit.profiling.loopback.running import running, wait_until_ready, free_port
    from prunekit.utils.process.stopping import stoppable
    port = free_port()
    argv = python_command(code={SCRIPTED!r}, arguments=["answer", str(port)])
    with stoppable(lambda number: None), running(argv, dict(__import__("os").environ), Path("log")) as process:
        wait_until_ready(process, port, "/", Path("log"), 30, "it")
        print(process.pid, flush=True)
        time.sleep(600)
    """
    child = Warm(textwrap.dedent(code), [], cwd=tmp_path)
    pid = int(child.stdout.readline())
    child.send_signal(number)
    child.wait(60)
    child.stdout.close()
    assert gone(pid)


def test_ports(tmp_path: Path) -> None:
    assert free_port() != free_port()
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(PrunekitError, match=r"Port \d+ of 127.0.0.1 can't be used: Address already in use\. Name"):
            check_port(taken.getsockname()[1])
    for port in (-1, 65536):
        with pytest.raises(PrunekitError, match="from 1 to 65535"):
            check_port(port)


@pytest.mark.parametrize("asked", [{"threads": 0}, {"slots": -1}, {"context": 1}])
def test_numbers_that_are_none(tmp_path: Path, asked: dict[str, int]) -> None:
    with pytest.raises(PrunekitError, match=f"A server's {next(iter(asked))} must be from"), served(tmp_path, **asked):
        pass


def test_what_opens_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_tiny_gguf(tmp_path / "tiny.gguf")
    assert (opened(str(file)).kind, opened(str(file)).path) == ("llama.cpp", file)
    found = opened(str(EXPORT))
    assert found.kind == "llama.cpp" and found.path.suffix == ".gguf" and found.digest() == sha256(found.path)
    folder = save_tiny(tmp_path / "model")
    assert opened(str(folder)).kind == ("vllm" if installed_module.has_vllm() else "transformers")
    assert opened(str(folder), "vllm").kind == "vllm" and len(opened(str(folder)).digest()) == 64
    with pytest.raises(PrunekitError, match=r"run `prunekit export .* --to gguf"):
        opened(str(folder), "llama.cpp")
    with pytest.raises(PrunekitError, match="no kind of server 'tgi'"):
        opened(str(folder), "tgi")
    with pytest.raises(PrunekitError, match="There is no model"):
        opened(str(tmp_path / "nothing"))


def test_files_of_strangers_are_checked_first(tmp_path: Path) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()[:200])
    with pytest.raises(PrunekitError, match="download it again"):
        opened(str(short))
    export = tmp_path / "export"
    export.mkdir()
    for each in EXPORT.iterdir():
        (export / each.name).write_bytes(each.read_bytes())
    (export / "more.gguf").write_bytes(b"GGUF")
    with pytest.raises(PrunekitError, match=r"holds more\.gguf"):
        opened(str(export))
    (export / "prunekit-export.json").write_text('{"target": "onnx", "files": {}}')
    with pytest.raises(PrunekitError, match="export for 'onnx', which has no server here"):
        opened(str(export))
    folder = save_tiny(tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "vocab_file": "/etc/passwd"}))
    with pytest.raises(PrunekitError):
        opened(str(folder))


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, folder = write_tiny_gguf(tmp_path / "tiny.gguf"), save_tiny(tmp_path / "model")
    monkeypatch.setattr(installed_module, "find_spec", lambda name: None)
    monkeypatch.setattr(installed_module, "find_program", lambda name: None)
    with (
        pytest.raises(PrunekitError, match=r"package llama_cpp, .*\[serve\].*, or put llama-server in PATH"),
        served(file),
    ):
        pass
    with (
        pytest.raises(PrunekitError, match=r"package uvicorn, which is not installed; run .*\[serve\]"),
        served(folder),
    ):
        pass
    with pytest.raises(PrunekitError, match="no program vllm"), served(folder, kind="vllm"):
        pass


def wanted(**changes: Any) -> commands_module.Wanted:
    return commands_module.Wanted(
        **{"port": 8000, "context": 512, "threads": 2, "slots": None, "device": "cpu", **changes}
    )


def test_command_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, folder = write_tiny_gguf(tmp_path / "tiny.gguf"), save_tiny(tmp_path / "model")
    program = str(tmp_path / "bin" / "llama-server")
    monkeypatch.setattr(commands_module, "llama_server", lambda: program)
    made = commands_module.command_of(opened(str(file)), wanted(slots=4), tmp_path)
    assert made.argv[-len(made.shown) :][:3] == [program, "-m", str(file)]
    line = " ".join(made.shown)
    assert line.startswith("llama-server -m tiny.gguf --host 127.0.0.1 --port PORT --alias tiny -fa on")
    # The context is of all slots together.
    assert "-c 2048 -np 4 -ngl 0 -t 2" in line and made.slots == 4 and made.ready == "/health"
    # Under load one slot would measure its own queue.
    made = commands_module.command_of(opened(str(file)), wanted(), tmp_path)
    assert "-c 2048 -np 4" in " ".join(made.shown) and made.slots == 4
    made = commands_module.command_of(opened(str(file)), wanted(slots=1), tmp_path)
    assert "-c 512 -np 1" in " ".join(made.shown) and made.slots == 1
    monkeypatch.setattr(commands_module, "llama_server", lambda: None)
    with pytest.raises(PrunekitError, match="one request at a time; put llama-server in PATH"):
        commands_module.command_of(opened(str(file)), wanted(slots=4), tmp_path)
    with pytest.raises(PrunekitError, match="ask for one slot"):
        commands_module.command_of(opened(str(folder), "transformers"), wanted(slots=2), tmp_path)
    monkeypatch.setattr(commands_module, "find_program", lambda name: f"/opt/bin/{name}")
    vllm = opened(str(folder), "vllm")
    made = commands_module.command_of(vllm, wanted(slots=8, device="auto"), tmp_path)
    assert " ".join(made.shown) == (
        "vllm serve model --host 127.0.0.1 --port PORT --served-model-name model --max-model-len 512 --max-num-seqs 8"
    )
    assert made.variables["OMP_NUM_THREADS"] == "2" and "trust" not in " ".join(made.argv)
    with pytest.raises(PrunekitError, match="vLLM chooses its device itself"):
        commands_module.command_of(vllm, wanted(), tmp_path)


def test_the_environment_of_a_server() -> None:
    made = server_environment(
        {"HOST": "0.0.0.0", "Port": "1", "WEB_CONCURRENCY": "4", "OMP_NUM_THREADS": "2", "LLAMA_ARG_PORT": "7"}
    )
    assert not {"HOST", "Port", "WEB_CONCURRENCY", "LLAMA_ARG_PORT"} & made.keys()
    assert (made["OMP_NUM_THREADS"], made["HF_HUB_OFFLINE"], made["NO_PROXY"]) == ("2", "1", "*")


def _listens(port: int) -> bool:
    with closing(socket.socket()) as tried:
        tried.settimeout(1)
        return tried.connect_ex(("127.0.0.1", port)) == 0
