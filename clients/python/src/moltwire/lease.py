"""What tasks and jobs have in common: a stream that is kept open, and pieces of leased work, each in a thread, with heartbeats while it is done and an answer that is brought to the server."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from moltwire.calls import OnProblem, backoff
from moltwire.errors import MoltwireError

MAX_MESSAGE = 4_096
MAX_PROGRESS = 1_024
_FIRST_WAIT = 0.1
_LONGEST_WAIT = 5.0
_LONGEST_OPEN_WAIT = 10.0
# What another try does not mend.
_HOPELESS = {
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
}
# What may pass: the same call again may be answered.
_PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


class TaskError(Exception):
    """The work failed, and whether another try may mend it. Whatever else a handler raises may be mended by another try."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


def failure_of(error: Exception) -> tuple[str, bool]:
    """What a handler that raised has to say of it, and whether another try may mend it."""
    return (str(error) or type(error).__name__)[:MAX_MESSAGE], error.retryable if isinstance(error, TaskError) else True


@contextmanager
def on_terminate(stop: threading.Event) -> Iterator[None]:
    """Sets the event on SIGTERM, where that can be heard."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def keep_open(read: Callable[[Callable[[], None]], None], stop: threading.Event, on_problem: OnProblem) -> None:
    """Reads until `stop`; raises what another try does not mend, and tells everything else. `read` calls back at each message."""
    failures = 0

    def heard() -> None:
        nonlocal failures
        failures = 0

    while not stop.is_set():
        try:
            read(heard)
        except grpc.RpcError as error:
            if stop.is_set():
                return
            # What no server told is a connection that broke, in whatever way it shows.
            if isinstance(error, MoltwireError) and error.code() in _HOPELESS:
                raise
            on_problem(error)
        stop.wait(backoff(failures, _FIRST_WAIT, _LONGEST_OPEN_WAIT))
        failures += 1


class Hand:
    """The pieces of work that are in hand, each by its id: begun, let go, waited for."""

    def __init__(self, begin: Callable[[Any, threading.Event], None]) -> None:
        self._begin = begin
        self._works: dict[str, tuple[threading.Thread, threading.Event]] = {}
        self._changed = threading.Condition()

    def take(self, id: str, delivery: Any) -> None:
        """Begins it; what was begun under this id before is another's now."""
        given_up = threading.Event()

        def work() -> None:
            try:
                self._begin(delivery, given_up)
            finally:
                with self._changed:
                    if self._works.get(id, (None, None))[1] is given_up:
                        del self._works[id]
                    self._changed.notify_all()

        thread = threading.Thread(target=work, name=f"moltwire-{id}", daemon=True)
        with self._changed:
            if id in self._works:
                self._works[id][1].set()
            self._works[id] = (thread, given_up)
        thread.start()

    def let_go(self, id: str) -> None:
        with self._changed:
            if id in self._works:
                self._works[id][1].set()

    def let_all_go(self) -> None:
        with self._changed:
            for _, given_up in self._works.values():
                given_up.set()

    def wait_until_empty(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._works)


class Beating:
    """A heartbeat in every third of the lease, until the work is answered (the end of `with`) or let go. `beat` has a deadline in seconds, and says whether somebody wants the work to end."""

    def __init__(self, id: str, lease: float, beat: Callable[[float], bool], given_up: threading.Event, on_problem: OnProblem) -> None:
        self._pace = lease / 3
        self._beat = beat
        self._given_up = given_up
        self._on_problem = on_problem
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"moltwire-beat-{id}", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(self._pace) and not self._given_up.is_set():
            try:
                if self._beat(self._pace):
                    self._given_up.set()
            except grpc.RpcError as error:
                # A lost heartbeat is made good by the next one; a lost lease is not.
                if isinstance(error, MoltwireError) and error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                    self._given_up.set()
                elif not self._done.is_set():
                    self._on_problem(error)


def until_answered(call: Callable[[], object], given_up: threading.Event) -> None:
    """Calls until the server has answered, whatever it says; its idempotency key makes it one answer. As long as the lease is there it is worth it."""
    failures = 0
    while not given_up.is_set():
        try:
            call()
            return
        except MoltwireError as error:
            if error.code() not in _PASSING:
                raise
        given_up.wait(backoff(failures, _FIRST_WAIT, _LONGEST_WAIT))
        failures += 1
