"""llama-cpp-python's server, told by its arguments alone: it would also take settings from variables such as MODEL,
HOST or API_KEY, which may stand in a user's environment for something else."""

from __future__ import annotations

import os


def main() -> None:
    """Serve as ``python -m llama_cpp.server`` does, by sys.argv."""
    from llama_cpp.server.settings import Settings

    for name in [*os.environ]:
        if name.lower() in Settings.model_fields:
            del os.environ[name]
    from llama_cpp.server.__main__ import main as serve

    serve()


if __name__ == "__main__":
    main()
