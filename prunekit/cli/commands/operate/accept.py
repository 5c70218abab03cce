"""``prunekit accept``: whether a smaller model does the company's own records as well as the dense one."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from prunekit.cli import options as o
from prunekit.cli.common import app, note, print_json
from prunekit.cli.long_command import long
from prunekit.cli.tables.operate.acceptance import show_acceptance

_SERVER = "or the address of a server (http://...)"


@app.command("accept")
@long
def accept_command(
    model: Annotated[str, typer.Argument(metavar="SMALLER", help=f"{o.MODEL}, {_SERVER}.", show_default=False)],
    baseline: Annotated[str, typer.Option(help=f"{o.BASELINE}: a model, {_SERVER}.", show_default=False)],
    records: Annotated[
        Path,
        typer.Option(
            help="Your test records: JSON, one a line, each with a prompt or messages, a reference and a check: exact, "
            "contains, numeric, regex or json-schema.",
            show_default=False,
        ),
    ],
    policy: Annotated[
        Path | None,
        typer.Option(
            help="A TOML file of what must be reached, such as margin = 0.02 (default: a rise of the error rate below "
            "2 points).",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help=f"{o.OUTPUT}: a folder. Answers are kept there; a stopped run goes on."),
    ] = Path("acceptance"),
    max_new_tokens: Annotated[
        int, typer.Option(help="At most so many new tokens a prompt. A record's own max_tokens goes first.")
    ] = 128,
    batch_size: Annotated[int, typer.Option(help=f"{o.BATCH_SIZE}: answers of a model, or requests to a server.")] = 8,
    show_texts: Annotated[
        bool,
        typer.Option(
            "--show-texts",
            help="Also show beginnings of your own texts and what the models wrote, the worst first.",
        ),
    ] = False,
    served_name: Annotated[
        str | None,
        typer.Option(
            help="Name of the model in requests: to its server (default: the first that it lists).",
            show_default=False,
            rich_help_panel=o.SERVERS,
        ),
    ] = None,
    baseline_served_name: Annotated[
        str | None,
        typer.Option(
            help="Name of the baseline in requests: to its server.", show_default=False, rich_help_panel=o.SERVERS
        ),
    ] = None,
    api_key_env: o.ApiKeyEnv = None,
    answer_timeout: Annotated[
        float,
        typer.Option(help="Seconds after which an answer of a server is given up.", rich_help_panel=o.SERVERS),
    ] = 300.0,
    server: Annotated[
        Literal["auto", "llama.cpp", "transformers", "vllm"] | None,
        typer.Option(
            help="What serves models: auto, llama.cpp, transformers or vllm. Local ones are asked there, on 127.0.0.1 "
            "(default: PyTorch reads them).",
            show_default=False,
            rich_help_panel=o.SERVERS,
        ),
    ] = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    revision: o.Revision = None,
    baseline_revision: o.BaselineRevision = None,
    overwrite: o.Overwrite = False,
    as_json: o.Json = False,
) -> None:
    """Test a smaller model on your own records, beside the dense one, and accept or refuse it by a policy.

    Exit code 0: accepted. 3: refused, or too few records to tell. 2: something given is broken. A run that was stopped
    goes on with the same command, and asks only what is missing.
    """
    from prunekit.evaluation.acceptance.run import accept

    pair: list[Any] = [model, baseline]
    with ExitStack() as stack:
        if server is not None:
            from prunekit.cli.serving import behind_servers, context_for

            pair = stack.enter_context(behind_servers(pair, server, context_for(records, max_new_tokens)))
        made = accept(
            pair[0],
            baseline=pair[1],
            records=records,
            policy=policy,
            out=output,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            show_texts=show_texts,
            served_name=served_name,
            baseline_served_name=baseline_served_name,
            api_key_env=api_key_env,
            answer_timeout=answer_timeout,
            dtype=dtype,
            device=device,
            revision=revision,
            baseline_revision=baseline_revision,
            overwrite=overwrite,
        )
    if as_json:
        print_json(made.to_dict())
    else:
        show_acceptance(made)
    if made.verdict.exit_code:
        note(f"{made.smaller['model']} is not accepted ({made.verdict.word}): exit code {made.verdict.exit_code}.")
        raise typer.Exit(made.verdict.exit_code)
