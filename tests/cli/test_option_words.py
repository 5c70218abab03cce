"""One word, one meaning: an option that several commands have says and takes the same in each."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any, get_args

import pytest
import typer

from prunekit.cli import app
from prunekit.cli.long_command import TELLING

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
# The most that people read, beside what every long command has in a panel of its own: --quiet, --verbose and --log.
LIMITS = {"plan": 21, "prune": 31}
# What names a model on a hub, and where its revision is named.
MODELS = (
    "accept",
    "analyze",
    "candidates",
    "plan",
    "prune",
    "recover",
    "eval",
    "generate",
    "export",
    "bench",
    "latency-table",
)


def options(command: str) -> list[Any]:
    return [each for each in COMMANDS[command].params if each.param_type_name == "option" and each.name != "help"]


def meaning(option: Any) -> str:
    """The beginning of its help, before what a command adds."""
    return re.split("[:;.(]", option.help)[0].strip()


@pytest.mark.parametrize("command", LIMITS)
def test_few_options(command: str) -> None:
    own = [each for each in options(command) if each.name not in TELLING]
    assert len(own) <= LIMITS[command]


def test_an_option_means_the_same_in_every_command() -> None:
    said: dict[str, dict[tuple[Any, ...], str]] = defaultdict(dict)
    for command in COMMANDS:
        for each in options(command):
            # Some commands take several of what others take one of, or none.
            takes = each.type_descriptor.annotation
            takes = next((part for part in get_args(takes) if part is not type(None)), takes)
            for word in (*each.opts, *each.secondary_opts):
                said[word][meaning(each), get_args(takes) or takes] = command
    clashes = {word: meanings for word, meanings in said.items() if len(meanings) > 1}
    assert not clashes


def test_every_option_is_explained() -> None:
    assert all(each.help for command in COMMANDS for each in options(command))


def test_long_commands_tell_of_progress_alike() -> None:
    long = {command for command in COMMANDS if {*TELLING} <= {each.name for each in options(command)}}
    assert long == {*COMMANDS} - {"methods", "inspect", "report"}
    before = {each.name for each in typer.main.get_command(app).params}  # type: ignore[attr-defined]
    assert {*TELLING} <= before


def test_a_revision_can_be_named_wherever_a_model_is() -> None:
    for command in MODELS:
        words = {word for each in options(command) for word in each.opts}
        assert "--revision" in words
        assert ("--baseline" in words) == ("--baseline-revision" in words)
    assert {*COMMANDS} - {*MODELS} == {"methods", "inspect", "report", "demo"}
