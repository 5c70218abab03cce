"""Servers of models on 127.0.0.1, for the length of a block: llama.cpp's, transformers' and vLLM's."""

from prunekit.profiling.loopback.serve import Identity, Server, served

__all__ = ["Identity", "Server", "served"]
