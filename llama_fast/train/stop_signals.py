"""Stop a run at the end of its step when a person or a scheduler asks for it.

Ctrl-C sends SIGINT. Slurm, Kubernetes, `torchrun` and `kill` send SIGTERM and, after a grace period
of 30 seconds or so, SIGKILL, which no process can answer.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingStopped(KeyboardInterrupt):
    """A run was stopped by a signal, after its checkpoint was written.

    Attributes:
        signal: the signal.
        step: the step of the checkpoint.
    """

    def __init__(self, received: signal.Signals, step: int) -> None:
        super().__init__(f"stopped by {received.name} after step {step}, which is saved")
        self.signal, self.step = received, step


class _Abandoned(BaseException):
    """Ends work that need not be finished; not an Exception, so that no such work catches it."""


class StopSignals:
    """Within the context, SIGINT and SIGTERM are noted instead of ending the process.

    Only the main thread can take signals; in other threads the context does nothing. A second
    SIGINT ends the process as usual, if it is the only one of its run: `torchrun` passes on a
    Ctrl-C that its processes have received already.

    Args:
        log: called with a line when the first signal arrives.
        only_process: whether the run has no other process.

    Attributes:
        received: the first signal that arrived, or None.

    Example:
        >>> with StopSignals(print) as stop:
        ...     while stop.received is None:
        ...         train_step()
    """

    def __init__(self, log: Callable[[str], object], only_process: bool = True) -> None:
        self._log, self._only_process = log, only_process
        self._previous: dict[signal.Signals, Any] = {}
        self._may_abandon = False
        self.received: signal.Signals | None = None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            # A handler that was not installed from Python is None, and could not be restored.
            previous = {number: signal.getsignal(number) for number in SIGNALS}
            self._previous = {n: handler for n, handler in previous.items() if handler is not None}
            for number in self._previous:
                signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if number == signal.SIGINT == self.received and self._only_process:
                raise KeyboardInterrupt
            return
        self.received = signal.Signals(number)
        again = "; Ctrl-C again ends it without" if number == signal.SIGINT else ""
        with contextlib.suppress(RuntimeError):  # the signal arrived within a print
            self._log(f"{self.received.name}: ending this step and saving{again}")
        if self._may_abandon:
            raise _Abandoned

    def finishes(self, work: Callable[[], object]) -> bool:
        """Call `work`, which changes nothing that is saved; a signal ends it at once.

        With several processes it is finished, because the others may wait for this one in it.

        Returns:
            Whether it was finished.
        """
        try:
            try:
                self._may_abandon = self._only_process
                if self.received is None or not self._only_process:
                    work()
                    return True
            finally:
                self._may_abandon = False
        except _Abandoned:
            pass
        return False
