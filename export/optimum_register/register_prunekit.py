"""``optimum-cli export prunekit``: found by optimum in its namespace ``optimum.commands.register``.

optimum imports this at every start of its command line, so it imports nothing else before the command runs.
"""

from __future__ import annotations

from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class PrunekitExportCommand(BaseOptimumCLICommand):
    """A checkpoint pruned by prunekit to ONNX (or another of its targets), checked against PyTorch."""

    COMMAND = CommandInfo(name="prunekit", help="Export a pruned model, whose layers differ, and check it.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        parser.add_argument("-m", "--model", required=True, help="The checkpoint: a folder, a hub id, a .gguf file.")
        parser.add_argument("output", help="The folder to write.")
        parser.add_argument("--to", default="onnx", help="The target, as `prunekit export --list` names it.")
        parser.add_argument("--dtype", default="auto", help="Precision, as `prunekit export --list` names it.")
        parser.add_argument("--overwrite", action="store_true", help="Replace an export of that name.")
        parser.add_argument(
            "--no-verify", action="store_true", help="Don't run the result and compare it with PyTorch."
        )
        parser.add_argument(
            "--trust-remote-code", action="store_true", help="Run a tokenizer that is code in the checkpoint."
        )

    def run(self) -> None:
        import sys

        from prunekit.cli import main

        given = self.args
        assert given is not None
        flags = ("overwrite", "no_verify", "trust_remote_code")
        chosen = [f"--{flag.replace('_', '-')}" for flag in flags if getattr(given, flag)]
        options = ["--to", given.to, "--output", given.output, "--dtype", given.dtype, *chosen]
        # prunekit's own command line does the rest, so that messages and exit codes are the same.
        sys.argv = ["prunekit", "export", *options, "--", given.model]
        main()


REGISTER_COMMANDS = [(PrunekitExportCommand, ExportCommand)]
