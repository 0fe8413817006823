"""Ctrl-C and `kill`, at moments that the other tests can't choose."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from vlac_queue.cli import main

#: What a program does, and where the signal comes.
_PROGRAMS = {
    "in a finalizer": """
        Dropped()
        time.sleep(60)
    """,
    "in a finalizer, and again at once": """
        def started(thread):
            signal.raise_signal(signal.SIGINT)
            start(thread)

        start, threading.Thread.start = threading.Thread.start, started
        Dropped()
        time.sleep(60)
    """,
    "in the callback of a weak reference": """
        kept = Kept()
        reference = weakref.ref(kept, lambda reference: signal.raise_signal(signal.SIGTERM))
        del kept
        time.sleep(60)
    """,
    "while a signal is held": """
        with signals_held():
            signal.raise_signal(signal.SIGTERM)
            print("held")
        time.sleep(60)
    """,
    "while signals begin to be held": """
        def replaced(number, handler):
            before = replace(number, handler)
            if number == signal.SIGINT and callable(handler):
                signal.raise_signal(signal.SIGTERM)
            return before

        replace, signal.signal = signal.signal, replaced
        with signals_held():
            time.sleep(60)
    """,
}

_AROUND = """
import signal, threading, time, weakref
from vlac_queue.signals import interrupt_on_signals, signals_held

class Dropped:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

class Kept:
    pass

interrupt_on_signals()
try:
{}
except KeyboardInterrupt:
    signal.raise_signal(signal.SIGINT)
    print("interrupted once")
"""


@pytest.mark.parametrize("moment", _PROGRAMS)
def test_the_first_signal_interrupts_and_the_second_does_not(moment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _AROUND.format(_PROGRAMS[moment])], capture_output=True, text=True, timeout=30
    )
    assert done.stdout.splitlines()[-1:] == ["interrupted once"] and done.stderr == ""
    assert ("held" in done.stdout) == (moment == "while a signal is held")


def test_ctrl_c_in_a_finalizer_ends_any_command() -> None:
    program = """
import signal, sys, time
import vlac_queue.cli

class Dropped:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def imported(name):
    Dropped()
    time.sleep(60)

vlac_queue.cli.import_module = imported
vlac_queue.cli.main(["plan"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (130, "interrupted; everything that was started has ended\n")


def test_ctrl_c_while_a_command_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def imported(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vlac_queue.cli.import_module", imported)
    result = CliRunner().invoke(main, ["plan"])
    assert result.exit_code == 130 and result.output == "interrupted; everything that was started has ended\n"
