"""Which servers this environment has, and what to install where one is missing."""

from __future__ import annotations

from importlib.util import find_spec

from prunekit.errors import PrunekitError
from prunekit.utils.process.child import find_program
from prunekit.utils.provenance import install_extra

LLAMA_CPP, TRANSFORMERS, VLLM = "llama.cpp", "transformers", "vllm"
# llama.cpp's own server, which answers several requests at once.
LLAMA_SERVER = "llama-server"
_OF_LLAMA = ("llama_cpp", "uvicorn", "fastapi", "pydantic_settings", "sse_starlette", "starlette_context")
_OF_TRANSFORMERS = ("uvicorn", "fastapi", "pydantic", "openai")


def has_vllm() -> bool:
    return find_program("vllm") is not None


def llama_server() -> str | None:
    """The path of llama.cpp's own server; None where PATH has none, and llama-cpp-python's is taken."""
    return find_program(LLAMA_SERVER)


def check_installed(kind: str) -> None:
    """Raises PrunekitError, with what to install, where the server of ``kind`` is missing."""
    if kind == VLLM:
        if not has_vllm():
            raise PrunekitError("PATH has no program vllm; install vLLM, or serve with --server transformers.")
        return
    if kind == LLAMA_CPP and llama_server() is not None:
        return
    missing = [name for name in (_OF_LLAMA if kind == LLAMA_CPP else _OF_TRANSFORMERS) if find_spec(name) is None]
    if not missing:
        return
    if kind == LLAMA_CPP:
        raise PrunekitError(
            f"llama.cpp's server needs the package {missing[0]}, which is not installed; run "
            f"`{install_extra('serve')}`, or put {LLAMA_SERVER} in PATH."
        )
    raise PrunekitError(
        f"`transformers serve` needs the package {missing[0]}, which is not installed; run `{install_extra('serve')}`."
    )
