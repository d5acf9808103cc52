"""SIGTERM and SIGINT as a request to stop at the end of a step, instead of an end in the middle of
one.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator

CAUGHT = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A run that signal `number` ended after step `step`, which is saved; scripts exit with 128 +
    `number`.

    Args:
      number: of the signal.
      step: that is saved.
    """

    def __init__(self, number: int | None, step: int):
        self.number = number or signal.SIGTERM
        name = signal.Signals(self.number).name
        super().__init__(
            f'stopped by {name}: step {step} is saved; run the same command again to continue'
        )


class StopSignal:
    """Whether a signal has asked for the end; `number` is that signal, None before."""

    number: int | None = None


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopSignal]:
    """Catches the first SIGTERM or SIGINT in the block; the second does what it always does.

    Outside of the main thread, where Python allows no handlers, signals are left as they are.
    """
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in CAUGHT}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: object) -> None:
        stop.number = number
        restore()

    for number in CAUGHT:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        restore()


@contextlib.contextmanager
def children_ignore_sigint() -> Iterator[None]:
    """Processes started in the block ignore SIGINT: a Ctrl-C reaches a whole group, and is their
    parent's to answer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
