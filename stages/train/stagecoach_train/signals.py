"""When to stop early: SIGTERM, Ctrl-C, the workflow engine's deadline, the recipe's wall-clock budget, a fenced
attempt.

Python runs a signal's handler only between two of its own instructions, so a rank inside a long compilation or
collective would not react. The signal's number therefore also arrives on a pipe that a thread reads: while there is
nothing to save (at the start, up to the end of the first step) that thread ends the process with 75 by itself.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import Any

from stagecoach.errors import ConfigError, InterruptedWithProgress

DEADLINE_MARGIN_SECONDS = 30.0
EXPENDABLE_GRACE_SECONDS = 4.0
LAST_WORD_SECONDS = 2.0
SAME_STOP_SECONDS = 0.2
"""Ctrl-C gives ranks SIGINT, and the launcher, which gets it too, sends them SIGTERM: signals so close are one stop."""
_EXIT_CODE = InterruptedWithProgress.exit_code
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def deadline_unix_seconds(text: str | None) -> float | None:
    """Read ``ARGO_DEADLINE``: RFC 3339; the year 1 is Argo's way to say "none".

    Raises:
        ConfigError: The text is no time of that form.
    """
    if not text or text.startswith("0001-"):
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise ConfigError(f"environment variable ARGO_DEADLINE: expected an RFC 3339 time, got {text!r}") from error


class StopRequest:
    """Collects reasons to stop early; the training loop asks it at every safe point.

    Attributes:
        expendable: Nothing would be lost if the process ended now, because all progress is in the store.
        save_seconds: How long a checkpoint takes to be committed; a deadline is met that much earlier.
        last_word: Called before a signal ends the process in the middle of something; waited for two seconds at most.
    """

    def __init__(self, *, deadline: float | None = None, budget_seconds: float | None = None) -> None:
        """Start the clock of the budget.

        Args:
            deadline: Unix time at which the process will be ended from outside.
            budget_seconds: Seconds from now after which to stop.
        """
        now_seconds = time.monotonic()
        limits = []
        if deadline is not None:
            limits.append((now_seconds + deadline - time.time() - DEADLINE_MARGIN_SECONDS, "ARGO_DEADLINE is near"))
        if budget_seconds is not None:
            limits.append((now_seconds + budget_seconds, f"the wall-clock budget of {budget_seconds:g} s is used up"))
        self._limit_seconds, self._limit_reason = min(limits, default=(float("inf"), ""))
        self._reason: str | None = None
        self._signalled = False
        self._left = threading.Event()
        self.expendable = False
        self.save_seconds = 0.0
        self.last_word: Callable[[], None] = lambda: None

    @property
    def reason(self) -> str | None:
        """Why to stop, or None."""
        if self._reason is None and time.monotonic() + self.save_seconds >= self._limit_seconds:
            self._reason = self._limit_reason
        return self._reason

    def request(self, reason: str) -> None:
        """Ask for a stop; the first reason stays. May be called from any thread."""
        if self._reason is None:
            self._reason = reason

    def check(self) -> None:
        """Return unless a stop was asked for.

        Raises:
            InterruptedWithProgress: It was.
        """
        if self.reason is not None:
            raise InterruptedWithProgress(f"train: stopped, {self.reason}; run again to go on from the last checkpoint")

    @contextmanager
    def listening(self, exit_now: Callable[[int], None] = os._exit, *, ends_process: bool = False) -> Iterator[None]:
        """Take SIGTERM and SIGINT as requests within the block; only in the main thread, else without effect.

        Args:
            exit_now: What ends a process whose state is expendable; tests pass a fake.
            ends_process: The process ends after the block. SIGTERM is ignored from then on if all is done or saved, and
                where it comes again, as the workflow engine and the kubelet each send one: it would put 143 in the
                place of the exit code. After any other failure it ends the process, as it would anywhere.

        A SIGINT that comes after another signal, and not together with it, is a person who does not want to wait: it
        ends the process, as what is half-written is trusted by nobody. Only the last word is let out before, for two
        seconds at most where the store hangs: three attempts without it would be refused a fourth one.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def end(number: int, frame: FrameType | None) -> None:
            exit_now(_EXIT_CODE)

        self._left.clear()
        receiving, sending = os.pipe()
        os.set_blocking(sending, False)
        thread = threading.Thread(target=self._watch, args=(receiving, exit_now), name="signals", daemon=True)
        thread.start()
        handlers: dict[signal.Signals, Any] = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        old_descriptor = signal.set_wakeup_fd(sending, warn_on_full_buffer=False)
        is_saved = False
        try:
            yield
            is_saved = True
        except InterruptedWithProgress:
            is_saved = True
            raise
        finally:
            self._left.set()
            signal.set_wakeup_fd(old_descriptor)
            if ends_process and (is_saved or self._signalled):
                handlers[signal.SIGTERM] = signal.SIG_IGN
            if ends_process and self._signalled:
                handlers[signal.SIGINT] = end
            for number, handler in handlers.items():
                signal.signal(number, handler)
            os.close(sending)
            thread.join()
            os.close(receiving)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
        self.request(f"{signal.Signals(number).name} arrived")

    def _watch(self, receiving: int, exit_now: Callable[[int], None]) -> None:
        first_seconds: float | None = None
        while data := os.read(receiving, 64):
            stopping = [number for number in data if number in _SIGNALS]
            if not stopping:
                continue
            now_seconds = time.monotonic()
            if first_seconds is None:
                first_seconds = now_seconds
            if signal.SIGINT in stopping and now_seconds - first_seconds >= SAME_STOP_SECONDS:
                self._end_process(exit_now)
            self.request(f"{signal.Signals(stopping[0]).name} arrived")
            limit_seconds = time.monotonic() + EXPENDABLE_GRACE_SECONDS
            while self.expendable and time.monotonic() < limit_seconds and not self._left.wait(0.05):
                pass
            if self.expendable and not self._left.is_set():
                self._end_process(exit_now)

    def _end_process(self, exit_now: Callable[[int], None]) -> None:
        # In a thread of its own: it asks the store, which may be what the process is stuck in.
        thread = threading.Thread(target=self.last_word, name="last-word", daemon=True)
        thread.start()
        thread.join(timeout=LAST_WORD_SECONDS)
        exit_now(_EXIT_CODE)
