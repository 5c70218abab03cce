"""``prunekit bench-server``: what pruning brought at a loaded server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from prunekit.cli import options as o
from prunekit.cli.common import app, note, print_json
from prunekit.cli.long_command import long
from prunekit.cli.tables.operate.bench_server import show
from prunekit.errors import PrunekitError
from prunekit.utils.files.atomic import check_output_file
from prunekit.utils.files.replacing import local

if TYPE_CHECKING:
    from prunekit.profiling.server.report import ServerReport
    from prunekit.utils.endpoints.endpoint import Endpoint

_LOAD, _TEXTS = "Load", "What is sent"


@app.command("bench-server")
@long
def bench_server_command(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A model to serve on 127.0.0.1 while the test runs, in place of --url.", show_default=False
        ),
    ] = None,
    baseline: Annotated[str | None, typer.Option(help=f"{o.BASELINE}.", show_default=False)] = None,
    url: Annotated[
        str | None,
        typer.Option(help="Address of a server with OpenAI's API: http://127.0.0.1:8000.", show_default=False),
    ] = None,
    baseline_url: Annotated[
        str | None,
        typer.Option(help="Address of the server of the baseline, to compare with.", show_default=False),
    ] = None,
    served_name: Annotated[
        str | None,
        typer.Option(
            help="Name of the model in requests: of --url (default: the first that the server lists).",
            show_default=False,
            rich_help_panel=o.SERVERS,
        ),
    ] = None,
    baseline_served_name: Annotated[
        str | None,
        typer.Option(
            help="Name of the baseline in requests: of --baseline-url.", show_default=False, rich_help_panel=o.SERVERS
        ),
    ] = None,
    api: Annotated[
        Literal["completions", "chat"],
        typer.Option(help="Which API texts are sent to: completions or chat.", rich_help_panel=o.SERVERS),
    ] = "completions",
    api_key_env: o.ApiKeyEnv = None,
    server: Annotated[
        Literal["auto", "llama.cpp", "transformers", "vllm"],
        typer.Option(help="What serves models: auto, llama.cpp, transformers or vllm.", rich_help_panel=o.SERVERS),
    ] = "auto",
    threads: o.Threads = None,
    slots: Annotated[
        int | None,
        typer.Option(
            help="Requests that a server started here answers at once; others wait in it.",
            show_default="4 for llama-server, 1 for llama-cpp-python's and transformers, vllm's own",
            rich_help_panel=o.SERVERS,
        ),
    ] = None,
    slo: Annotated[
        str | None,
        typer.Option(
            help="Service-level objective: most milliseconds, such as ttft=500,tpot=50. Finds the highest load that "
            "keeps it.",
            show_default=False,
            rich_help_panel=_LOAD,
        ),
    ] = None,
    slo_percentile: Annotated[
        float, typer.Option(help="Percentile of the SLO: 50 to below 100.", rich_help_panel=_LOAD)
    ] = 95.0,
    requests: Annotated[int, typer.Option(help="Requests to each server at each load.", rich_help_panel=_LOAD)] = 60,
    turns: Annotated[int, typer.Option(help="Turns of each server at each load: A B B A.", rich_help_panel=_LOAD)] = 4,
    concurrency: Annotated[
        list[int] | None,
        typer.Option(
            help="Closed loop: requests under way at a time; repeatable.", show_default="1, 2", rich_help_panel=_LOAD
        ),
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            help="Open loop: requests a second at random times; repeatable.",
            show_default="0.6 of the slower closed loop",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    burstiness: Annotated[
        float,
        typer.Option(
            help="Shape of the gamma distribution of gaps: 1 is Poisson, less is bursts.", rich_help_panel=_LOAD
        ),
    ] = 1.0,
    prompt_tokens: Annotated[int, typer.Option(help=f"{o.PROMPT_TOKENS}.", rich_help_panel=_TEXTS)] = 32,
    new_tokens: Annotated[int, typer.Option(help=f"{o.NEW_TOKENS}.", rich_help_panel=_TEXTS)] = 16,
    spread: Annotated[
        float, typer.Option(help="Spread of both lengths: sigma of a lognormal distribution.", rich_help_panel=_TEXTS)
    ] = 0.25,
    natural_tokens: Annotated[
        int,
        typer.Option(
            help="Most tokens of answers that end by themselves: shows whether the smaller model answers longer; 0 "
            "leaves this load out.",
            rich_help_panel=_TEXTS,
        ),
    ] = 64,
    prompt_file: Annotated[
        Path | None,
        typer.Option(
            help="Prompts to send: a JSONL file of rows with prompt or messages.",
            show_default=False,
            rich_help_panel=_TEXTS,
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Trace to replay: CSV of BurstGPT or Azure, JSONL of Mooncake or Bailian, or a request log. Of its "
            "requests, the first so many as --requests says.",
            show_default=False,
            rich_help_panel=_TEXTS,
        ),
    ] = None,
    speed: Annotated[float, typer.Option(help="Replay a trace so many times as fast.", rich_help_panel=_TEXTS)] = 1.0,
    warmup_requests: Annotated[
        int, typer.Option(help="Most requests of a warm-up, which ends when times are steady.", rich_help_panel=_LOAD)
    ] = 40,
    timeout: Annotated[
        float,
        typer.Option(help="Seconds without a token after which a request has failed.", rich_help_panel=_LOAD),
    ] = 60.0,
    max_minutes: Annotated[float, typer.Option(help=f"{o.MAX_MINUTES}.", rich_help_panel=_LOAD)] = 10.0,
    prices: o.PricesFile = None,
    energy: Annotated[
        bool,
        typer.Option(
            "--energy",
            help=f"{o.ENERGY}: joules a token and a request, where the servers run on this machine and it has a "
            "counter; else say why not.",
        ),
    ] = False,
    seed: o.Seed = 0,
    output: o.ReportFile = None,
    rows: Annotated[
        Path | None,
        typer.Option(
            help="Also write a line of JSON for each request to this file, without texts.", show_default=False
        ),
    ] = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:
    """Load-test a server of the smaller model, and one of the model it was pruned from, in turns.

    Servers speak OpenAI's API (vLLM, llama.cpp, transformers serve and others). Times are counted from when a request
    was to be sent, and a failed request counts as infinitely slow.
    """
    from prunekit.profiling.prices import Prices
    from prunekit.profiling.server.config import ServerConfig, parse_slo
    from prunekit.profiling.server.money import money
    from prunekit.profiling.server.report import write_report, write_rows
    from prunekit.profiling.server.run import bench_server

    endpoint = _named("--url", model, url, served_name, api, api_key_env)
    if endpoint is None:
        raise PrunekitError("Name a server with --url, or a model to serve.")
    if api_key_env is not None and url is None and baseline_url is None:
        raise PrunekitError("--api-key-env is of servers at an address; name one with --url, or leave it out.")
    if slots is not None and model is None and baseline is None:
        raise PrunekitError("--slots is of servers that are started here; name a model to serve, or leave it out.")
    dense = _named("--baseline-url", baseline, baseline_url, baseline_served_name, api, api_key_env)
    config = ServerConfig(
        requests=requests,
        blocks=min(turns, requests),
        concurrency=tuple(concurrency or (1, 2)),
        rates=tuple(rate) if rate else None,
        burstiness=burstiness,
        prompt=prompt_tokens,
        tokens=new_tokens,
        spread=spread,
        natural_tokens=natural_tokens,
        prompts=prompt_file,
        trace=trace,
        speed=speed,
        slo=None if slo is None else parse_slo(slo, slo_percentile),
        warmup=warmup_requests,
        timeout=timeout,
        max_minutes=max_minutes,
        energy=energy,
        seed=seed,
    )
    inputs = local(model, baseline, prompt_file, trace, prices)
    for path, what in ((output, "server-bench"), (rows, "server-requests")):
        if path is not None:
            check_output_file(path, overwrite, what=what, inputs=inputs)

    if output is not None and rows is not None and output.resolve() == rows.resolve():
        raise PrunekitError(f"Both --output and --rows name {output}; give each a file of its own.")
    priced = None if prices is None else Prices.load(prices)

    def write(report: ServerReport) -> ServerReport:
        made = None if priced is None else money(report, priced)
        if made is not None:
            report = replace(report, cost=made.to_dict(report.names))
        if output is not None:
            write_report(report, output, overwrite=overwrite)
        if rows is not None:
            write_rows(report, rows, overwrite=overwrite)
        return report

    def keep(report: ServerReport) -> None:
        write(report)
        if output is not None:
            note(f"What was measured until then is in {output}.")

    report = bench_server(
        endpoint, baseline=dense, config=config, server=server, threads=threads, slots=slots, api=api, keep=keep
    )
    report = write(report)
    if json:
        print_json(report.to_dict())
    else:
        show(report)


def _named(
    option: str,
    model: str | None,
    url: str | None,
    name: str | None,
    api: Literal["completions", "chat"],
    key: str | None,
) -> Endpoint | str | None:
    from prunekit.utils.endpoints.endpoint import Endpoint

    if model is not None and url is not None:
        raise PrunekitError(f"Name either a model or an address with {option}, not both.")
    if url is None and name is not None:
        names = option.replace("url", "served-name").replace("----", "--")
        raise PrunekitError(f"{names} is the name of a model at an address; name it with {option}, or leave it out.")
    return model if url is None else Endpoint(url, name, key, api=api)
