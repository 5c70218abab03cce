"""Tells of alarms as the user asked, remembers what is still to be told, and counts what failed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from prunekit.monitoring.alarms.alarm import Alarm, alarm_of, is_due
from prunekit.monitoring.alarms.command import Command
from prunekit.monitoring.alarms.webhook import body, post

_MOST_WAITING = 16
# Seconds before a webhook is tried again: twice as long each time.
_FIRST_WAIT, _LONGEST_WAIT = 60.0, 3600.0
# Commands whose run was cut off are begun so often.
_ATTEMPTS = 3


class Teller:
    """Starts ``command`` and posts to ``url`` for each alarm, once; ``note`` is told of failures."""

    def __init__(
        self,
        state: dict[str, Any],
        *,
        command: Command | None,
        url: str | None,
        cool_down: float,
        model: str,
        note: Callable[[str], None],
        now: Callable[[], float] = time.time,
        send: Callable[[str, dict[str, Any]], str | None] = post,
    ) -> None:
        self._command, self._url, self._cool_down = command, url, cool_down
        self._model, self._note, self._now, self._send = model, note, now, send
        self._told: dict[str, float] = dict(state.get("told", {}))
        self._commands: list[dict[str, Any]] = list(state.get("commands", []))
        self._posts: list[dict[str, Any]] = list(state.get("posts", []))
        self._held = None if state.get("held") is None else alarm_of(state["held"])
        # Alarms that gave way to one that is held back: receivers still take them for active.
        self._lasting = [alarm_of(each) for each in state.get("lasting", [])]
        self.failures: int = state.get("failures", 0)
        self.held_back: int = state.get("held_back", 0)
        self._wait, self._next_post = _FIRST_WAIT, 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON values only: what another Teller goes on from."""
        return {
            "told": self._told,
            "commands": self._commands,
            "posts": self._posts,
            "held": None if self._held is None else asdict(self._held),
            "lasting": [asdict(each) for each in self._lasting],
            "failures": self.failures,
            "held_back": self.held_back,
        }

    def begin(self, alarm: Alarm, instead_of: Alarm | None = None) -> None:
        """An alarm began: it waits to be told. Where one as severe was within the cool-down it is held back until that
        is over, and told if it still lasts then. The one that it came ``instead_of`` ends for receivers when they know
        of this one, or all is over: no alarm ends for them while another is active."""
        if instead_of is not None and (self._held is None or self._held.id != instead_of.id):
            self._lasting.append(instead_of)
        self._held = None
        if self._is_due(alarm):
            self._tell(alarm)
        else:
            self.held_back += 1
            self._held = alarm

    def _is_due(self, alarm: Alarm) -> bool:
        return is_due(alarm.verdict, self._told, self._now(), self._cool_down)

    def _tell(self, alarm: Alarm) -> None:
        self._told[alarm.verdict] = self._now()
        if self._command is not None:
            self._commands = [*self._commands, {"alarm": alarm.to_dict(), "attempts": 0}][-_MOST_WAITING:]
        if self._url is not None:
            self._posts = [*self._posts, alarm.to_dict()][-_MOST_WAITING:]
        self._end_lasting()

    def end(self, alarm: Alarm) -> None:
        """An alarm ended: receivers of the webhook are told, as Alertmanager does, where they know that it began."""
        if self._held is not None and self._held.id == alarm.id:
            self._held = None
        else:
            self._post_end(alarm)
        self._end_lasting()

    def _end_lasting(self) -> None:
        for each in self._lasting:
            self._post_end(replace(each, ended=self._now()))
        self._lasting = []

    def _post_end(self, alarm: Alarm) -> None:
        if self._url is not None:
            self._posts = [*self._posts, alarm.to_dict()][-_MOST_WAITING:]

    def work(self, keep: Callable[[], None], *, wait: bool = False) -> None:
        """Do what waits; ``keep`` is called when something of it is about to be done or was. With ``wait`` until
        commands have ended; a webhook is tried once, else when it is its turn."""
        if self._held is not None and self._is_due(self._held):
            self._tell(self._held)
            self._held = None
        self._post(keep, at_once=wait)
        self._run(keep)
        while wait and self._command is not None and self._command.running:
            self._finish(self._command.wait(), keep)
            self._run(keep)

    def stop(self) -> None:
        """End a command that runs; it is begun again by the next run."""
        if self._command is not None and self._command.running:
            self._command.stop()
            self._note("the command of an alarm was ended with this run; the next run starts it again")

    def _run(self, keep: Callable[[], None]) -> None:
        command = self._command
        if command is None:
            return
        if command.running:
            how = command.ended()
            if how is None:
                return
            self._finish(how, keep)
        while self._commands and not command.running:
            first = self._commands[0]
            if first["attempts"] >= _ATTEMPTS:
                self._fail("the command of an alarm was cut off three times and is not started again")
                self._commands.pop(0)
                continue
            # Before it starts: a run that is killed must not start it for ever.
            first["attempts"] += 1
            keep()
            why = command.start(first["alarm"])
            if why is not None:
                self._fail(f"the command of an alarm failed: {why}")
                self._commands.pop(0)
                keep()

    def _finish(self, how: str, keep: Callable[[], None]) -> None:
        if how != "exit code 0":
            self._fail(f"the command of an alarm failed: {how}")
        self._commands.pop(0)
        keep()

    def _post(self, keep: Callable[[], None], at_once: bool) -> None:
        if self._url is None or not self._posts or not (at_once or self._now() >= self._next_post):
            return
        while self._posts:
            why = self._send(self._url, body(self._posts[0], self._model))
            if why is not None:
                self._fail(f"the webhook failed: {why}; it is tried again")
                self._next_post = self._now() + self._wait
                self._wait = min(2 * self._wait, _LONGEST_WAIT)
                keep()
                return
            self._posts.pop(0)
            self._wait = _FIRST_WAIT
            keep()

    def _fail(self, words: str) -> None:
        self.failures += 1
        self._note(words)
