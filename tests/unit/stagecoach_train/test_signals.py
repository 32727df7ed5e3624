"""Reasons to stop early, and how fast a process without anything to lose ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import pytest

from stagecoach.errors import ConfigError, InterruptedWithProgress
from stagecoach_train import signals
from stagecoach_train.signals import StopRequest, deadline_unix_seconds


class TestDeadline:
    def test_an_rfc_3339_time_is_read(self) -> None:
        expected = datetime(2026, 11, 25, 1, 30, tzinfo=UTC).timestamp()
        assert deadline_unix_seconds("2026-11-25T01:30:00Z") == expected

    @pytest.mark.parametrize("text", [None, "", "0001-01-01T00:00:00Z"])
    def test_none_is_none(self, text: str | None) -> None:
        assert deadline_unix_seconds(text) is None

    def test_anything_else_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="ARGO_DEADLINE: expected an RFC 3339 time, got 'soon'"):
            deadline_unix_seconds("soon")

    def test_a_deadline_is_met_with_room_for_a_checkpoint(self) -> None:
        stop = StopRequest(deadline=time.time() + 100)
        assert stop.reason is None
        stop.save_seconds = 71  # 100 - 30 of margin - 71
        assert stop.reason == "ARGO_DEADLINE is near"

    def test_the_budget_counts_from_the_start(self) -> None:
        stop = StopRequest(budget_seconds=0.05)
        assert stop.reason is None
        time.sleep(0.06)
        assert stop.reason == "the wall-clock budget of 0.05 s is used up"

    def test_the_first_reason_stays(self) -> None:
        stop = StopRequest()
        stop.request("one")
        stop.request("two")
        with pytest.raises(InterruptedWithProgress, match="stopped, one; run again"):
            stop.check()


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_becomes_a_request_and_handlers_come_back(self, number: signal.Signals) -> None:
        before = signal.getsignal(number)
        stop = StopRequest()
        with stop.listening(exit_now=_never):
            os.kill(os.getpid(), number)
            _until(lambda: stop.reason is not None)
        assert stop.reason == f"{number.name} arrived"
        assert signal.getsignal(number) is before

    def test_a_second_signal_leaves_a_process_that_is_ending_its_exit_code(self) -> None:
        """Argo's executor and the kubelet each send one to the same process."""
        program = (
            "import os, signal, sys; from stagecoach_train.signals import StopRequest; stop = StopRequest()\n"
            "with stop.listening(ends_process=True):\n"
            "    os.kill(os.getpid(), signal.SIGTERM)\n"
            "    while stop.reason is None: pass\n"
            "os.kill(os.getpid(), signal.SIGTERM)\n"
            "sys.exit(75)"
        )
        assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 75

    @pytest.mark.parametrize("first", ["SIGTERM", "SIGINT"])
    @pytest.mark.parametrize("is_ending", [False, True])
    def test_ctrl_c_after_a_signal_ends_at_once(self, first: str, is_ending: bool) -> None:
        """Neither a checkpoint on its way nor the manifest is waited for."""
        program = (
            "import os, signal, time; from stagecoach_train.signals import StopRequest; stop = StopRequest()\n"
            "def again():\n"
            "    time.sleep(0.5)\n"
            "    os.kill(os.getpid(), signal.SIGINT)\n"
            "    time.sleep(30)\n"
            "with stop.listening(ends_process=True):\n"
            f"    os.kill(os.getpid(), signal.{first})\n"
            "    while stop.reason is None: pass\n"
            f"    {is_ending} or again()\n"
            "again()"
        )
        assert subprocess.run([sys.executable, "-c", program], check=False, timeout=25).returncode == 75

    def test_signals_that_come_together_are_one_stop(self) -> None:
        """Ctrl-C reaches a rank as SIGINT and, by its launcher, as SIGTERM; a busy machine delivers both at once."""
        program = (
            "import os, signal, time; from stagecoach_train.signals import StopRequest; stop = StopRequest()\n"
            "numbers = {signal.SIGINT, signal.SIGTERM}\n"
            "with stop.listening():\n"
            "    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)\n"
            "    for number in numbers: os.kill(os.getpid(), number)\n"
            "    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)\n"
            "    time.sleep(0.5)\n"
            "    print(stop.reason is not None)"
        )
        for _ in range(5):
            ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=60)
            assert (ended.returncode, ended.stdout) == (0, b"True\n"), ended.stderr

    def test_a_signal_that_comes_when_all_is_done_leaves_a_process_its_exit_code(self) -> None:
        """What is left is the manifest of what is there already: 0, not 143."""
        program = (
            "import os, signal; from stagecoach_train.signals import StopRequest\n"
            "with StopRequest().listening(ends_process=True): pass\n"
            "os.kill(os.getpid(), signal.SIGTERM)"
        )
        assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0

    def test_a_signal_after_a_failure_ends_a_process_that_hangs(self) -> None:
        """A library that waits for ranks that are gone would else be ended by SIGKILL alone."""
        program = (
            "import os, signal; from stagecoach_train.signals import StopRequest\n"
            "try:\n"
            "    with StopRequest().listening(ends_process=True): raise RuntimeError\n"
            "except RuntimeError: os.kill(os.getpid(), signal.SIGTERM)"
        )
        assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == -signal.SIGTERM

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_handlers_come_back_where_the_process_goes_on(self, number: signal.Signals) -> None:
        before = signal.getsignal(number)
        with StopRequest().listening(exit_now=_never):
            assert signal.getsignal(number) is not before
        assert signal.getsignal(number) is before

    def test_ctrl_c_is_the_keyboards_again_where_no_signal_came(self) -> None:
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        with StopRequest().listening(exit_now=_never, ends_process=True):
            assert signal.getsignal(signal.SIGINT) is not before[signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is before[signal.SIGINT]
        signal.signal(signal.SIGTERM, before[signal.SIGTERM])

    def test_an_expendable_process_ends_by_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(signals, "EXPENDABLE_GRACE_SECONDS", 0.2)
        ends: list[object] = []
        stop = StopRequest()
        stop.expendable = True
        stop.last_word = lambda: ends.append("interrupted")
        with stop.listening(exit_now=ends.append):
            os.kill(os.getpid(), signal.SIGTERM)
            _until(lambda: len(ends) == 2)
        assert ends == ["interrupted", 75]

    def test_a_last_word_that_hangs_is_not_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(signals, "EXPENDABLE_GRACE_SECONDS", 0.1)
        monkeypatch.setattr(signals, "LAST_WORD_SECONDS", 0.1)
        codes: list[int] = []
        said = threading.Event()

        def hang() -> None:
            said.wait(30)

        stop = StopRequest()
        stop.expendable = True
        stop.last_word = hang
        with stop.listening(exit_now=codes.append):
            os.kill(os.getpid(), signal.SIGTERM)
            _until(lambda: bool(codes))
        said.set()
        assert codes == [75]

    def test_a_process_with_something_to_save_does_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(signals, "EXPENDABLE_GRACE_SECONDS", 0.1)
        stop = StopRequest()
        with stop.listening(exit_now=_never):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)

    def test_leaving_in_time_prevents_the_hard_end(self) -> None:
        stop = StopRequest()
        stop.expendable = True
        with stop.listening(exit_now=_never):
            os.kill(os.getpid(), signal.SIGTERM)


def _never(code: int) -> None:
    raise AssertionError(f"ended with {code}")


def _until(condition: object) -> None:
    limit = time.monotonic() + 5
    assert callable(condition)
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)
