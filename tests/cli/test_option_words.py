"""One word, one meaning: an option that several commands have says and takes the same in each."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any, get_args

import pytest
import typer

from prunekit.cli import app
from prunekit.cli.long_command import TELLING

COMMANDS: dict[str, Any] = {}
for _name, _command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
    # A group's own commands, such as `watch init`.
    COMMANDS |= {f"{_name} {inner}": each for inner, each in getattr(_command, "commands", {}).items()} or {
        _name: _command
    }
# What a word means in one command alone, and why.
OWN_MEANINGS = {("watch run", "--baseline"): "what is normal, which `watch init` made: no model"}
# The most that people read, beside what every long command has in a panel of its own: --quiet, --verbose and --log.
LIMITS = {"plan": 21, "prune": 33}
# What names a model on a hub, and where its revision is named.
MODELS = (
    *("accept", "analyze", "candidates", "plan", "prune", "recover", "eval", "generate", "export", "bench"),
    "latency-table",
)
# Commands in which a model may be named by an option.
MAY_NAME_MODELS = ("watch init", "watch run")


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
                if (command, word) in OWN_MEANINGS:
                    continue
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
    for command in (*MODELS, *MAY_NAME_MODELS):
        words = {word for each in options(command) for word in each.opts if (command, word) not in OWN_MEANINGS}
        assert "--revision" in words
        assert ("--baseline" in words) == ("--baseline-revision" in words)
    # Servers are started on models that lie on the disk.
    assert {*COMMANDS} - {*MODELS, *MAY_NAME_MODELS} == {"methods", "inspect", "report", "demo", "bench-server"}
