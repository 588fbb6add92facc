"""An agent by BusService/Serve: a stream that is kept open, and the tasks that come on it, each in a thread of its own."""

import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc

from moltwire.calls import OnProblem, backoff
from moltwire.errors import MoltwireError
from moltwire.json_value import json_of, json_value

if TYPE_CHECKING:
    from moltwire.bus.v1.bus_service_pb2 import ServeRequest, TaskDelivery
    from moltwire.bus.v1.bus_service_pb2_grpc import BusServiceStub

_MAX_MESSAGE = 4_096
_MAX_PROGRESS = 1_024
_FIRST_WAIT = 0.1
_LONGEST_WAIT = 5.0
_LONGEST_OPEN_WAIT = 10.0
_LOOK_EVERY = 0.5
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


@dataclass(frozen=True)
class TaskInHand:
    """A task in the hands of a handler."""

    task_id: str
    attempt: int
    """From 1."""
    contract_id: str
    contract_version: str
    capability: str
    input: Any
    max_tokens: int
    """The tokens to use at most; 0 for no bound."""
    traceparent: str
    """The W3C trace context to send on with calls: `metadata=[("traceparent", task.traceparent)]`."""
    given_up: threading.Event = field(default_factory=threading.Event)
    """Is set when the task is canceled, timed out or another's: its answer is not used any more."""
    _told: dict[str, Any] = field(default_factory=dict)

    def progress(self, fraction: float, message: str = "") -> None:
        """Tells how far the work is, from 0 to 1, with the next heartbeat."""
        self._told["progress"] = {"fraction": min(1.0, max(0.0, fraction)), "message": message[:_MAX_PROGRESS]}

    def usage(self, *, input_tokens: int = 0, output_tokens: int = 0, model: str = "") -> None:
        """Tells what the work consumed, with the answer."""
        self._told["usage"] = {"input_tokens": input_tokens, "output_tokens": output_tokens, "model": model}


Handler = Callable[[TaskInHand], Any]
"""Does one task: gives its output, as `json.dumps` takes it, or raises."""


@dataclass(frozen=True)
class ServeOptions:
    """How tasks are served."""

    capacity: int = 1
    """How many tasks are in work at once, from 1 to 1,000, each in a thread."""
    lease: float = 30.0
    """How long the server waits for a sign of life of a task, in seconds, from 1 to 3,600. Heartbeats go out by themselves in every third of it."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Set it to end the serving; tasks in hand are finished. SIGTERM does the same."""
    agent_id: str = ""
    """The agent to serve for, with an administrator's key."""
    on_problem: OnProblem = lambda error: None
    """Hears why the stream broke, before it is opened anew, and why an answer or a heartbeat did not arrive. Default: nobody."""


def serve_tasks(bus: "BusServiceStub", handler: Handler, options: ServeOptions) -> None:
    """See `Moltwire.serve`."""
    from moltwire.bus.v1.bus_service_pb2 import ServeRequest

    # Under this name a stream that is opened anew goes on with what is in hand.
    instance = secrets.token_hex(16)
    request = ServeRequest(capacity=options.capacity, instance=instance, agent_id=options.agent_id)
    request.lease.FromTimedelta(timedelta(seconds=options.lease))
    hand = _Hand(lambda delivery, given_up: _work_on(bus, handler, delivery, given_up, options.on_problem))
    ended = threading.Event()
    stream = _Streams(bus, request, hand)

    def drain() -> None:
        # An event that is never set is not waited for when the serving is over for another reason.
        while not options.stop.wait(_LOOK_EVERY):
            if ended.is_set():
                return
        # What is on its way would be lost by hanging up: the server is told, and ends the stream after the last delivery.
        if not ended.is_set():
            stream.drain()

    threading.Thread(target=drain, name="moltwire-drain", daemon=True).start()
    try:
        with _on_terminate(options.stop):
            _keep_open(stream, options)
            hand.wait_until_empty()
    finally:
        ended.set()
        hand.let_all_go()
        stream.hang_up()


@contextmanager
def _on_terminate(stop: threading.Event) -> Iterator[None]:
    """Sets the event on SIGTERM, where that can be heard."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Streams:
    """The stream of deliveries, and the one that asks for its end."""

    def __init__(self, bus: "BusServiceStub", request: "ServeRequest", hand: "_Hand") -> None:
        self._bus = bus
        self._request = request
        self._hand = hand
        self._open: list[Any] = []

    def read(self, on_message: Callable[[], None], drain: bool = False) -> None:
        from moltwire.bus.v1.bus_service_pb2 import ServeRequest

        request = ServeRequest()
        request.CopyFrom(self._request)
        request.drain = drain
        call = self._bus.Serve(request)
        self._open.append(call)
        try:
            for message in call:
                on_message()
                if message.HasField("delivery"):
                    self._hand.take(message.delivery.task.task_id, message.delivery)
                elif message.HasField("revoked_task_id"):
                    self._hand.let_go(message.revoked_task_id)
        finally:
            self._open.remove(call)
            call.cancel()

    def drain(self) -> None:
        try:
            self.read(lambda: None, drain=True)
        except grpc.RpcError:
            # No server to tell: nothing more comes from it.
            self.hang_up()

    def hang_up(self) -> None:
        for call in list(self._open):
            call.cancel()


def _keep_open(stream: _Streams, options: ServeOptions) -> None:
    """Reads until `stop`; raises what another try does not mend, and tells everything else."""
    failures = 0

    def heard() -> None:
        nonlocal failures
        failures = 0

    while not options.stop.is_set():
        try:
            stream.read(heard)
        except grpc.RpcError as error:
            if options.stop.is_set():
                return
            # What no server told is a connection that broke, in whatever way it shows.
            if isinstance(error, MoltwireError) and error.code() in _HOPELESS:
                raise
            options.on_problem(error)
        options.stop.wait(backoff(failures, _FIRST_WAIT, _LONGEST_OPEN_WAIT))
        failures += 1


class _Hand:
    """The pieces of work that are in hand, each by its id: begun, let go, waited for."""

    def __init__(self, begin: Callable[["TaskDelivery", threading.Event], None]) -> None:
        self._begin = begin
        self._works: dict[str, tuple[threading.Thread, threading.Event]] = {}
        self._changed = threading.Condition()

    def take(self, id: str, delivery: "TaskDelivery") -> None:
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


def _work_on(bus: "BusServiceStub", handler: Handler, delivery: "TaskDelivery", given_up: threading.Event, on_problem: OnProblem) -> None:
    """Does one task under its lease. Never raises: what goes wrong is an answer to the server, or told to `on_problem`."""
    from moltwire.bus.v1.bus_service_pb2 import RespondTaskRequest, TaskFailure

    given = delivery.task
    task = TaskInHand(
        task_id=given.task_id,
        attempt=given.attempt,
        contract_id=given.contract_id,
        contract_version=given.contract_version,
        capability=given.capability,
        input=json_of(given.input),
        max_tokens=given.max_tokens,
        traceparent=given.traceparent,
        given_up=given_up,
    )
    done = threading.Event()
    beating = threading.Thread(target=_beat, args=(bus, delivery, task, done, on_problem), name=f"moltwire-beat-{given.task_id}", daemon=True)
    beating.start()
    answer = RespondTaskRequest(task_id=given.task_id, lease_token=delivery.lease_token)
    try:
        try:
            answer.output.CopyFrom(json_value(handler(task)))
        except Exception as error:  # Whatever the handler raises is how the task went.
            retryable = error.retryable if isinstance(error, TaskError) else True
            answer.failure.CopyFrom(TaskFailure(message=(str(error) or type(error).__name__)[:_MAX_MESSAGE], retryable=retryable))
        if "usage" in task._told:
            for name, value in task._told["usage"].items():
                setattr(answer.usage, name, value)
        if not given_up.is_set():
            _until_answered(bus, answer, f"{given.task_id}-{given.attempt}", given_up)
    except Exception as error:
        if not given_up.is_set():
            on_problem(error)
    finally:
        done.set()
        beating.join()


def _beat(bus: "BusServiceStub", delivery: "TaskDelivery", task: TaskInHand, done: threading.Event, on_problem: OnProblem) -> None:
    """A heartbeat in every third of the lease, until the work is answered or let go."""
    from moltwire.agent.v1.agent_runtime_pb2 import Progress
    from moltwire.bus.v1.bus_service_pb2 import HeartbeatTaskRequest

    pace = delivery.lease.ToTimedelta().total_seconds() / 3
    while not done.wait(pace) and not task.given_up.is_set():
        told = task._told.pop("progress", None)
        request = HeartbeatTaskRequest(task_id=task.task_id, lease_token=delivery.lease_token)
        if told:
            request.progress.CopyFrom(Progress(**told))
        try:
            if bus.HeartbeatTask(request, timeout=pace).cancel_requested:
                task.given_up.set()
        except grpc.RpcError as error:
            # A lost heartbeat is made good by the next one; a lost lease is not.
            if isinstance(error, MoltwireError) and error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                task.given_up.set()
            elif not done.is_set():
                on_problem(error)


def _until_answered(bus: "BusServiceStub", answer: Any, key: str, given_up: threading.Event) -> None:
    """Calls until the server has answered, whatever it says; the key makes it one answer. As long as the lease is there it is worth it."""
    failures = 0
    while not given_up.is_set():
        try:
            bus.RespondTask(answer, metadata=(("idempotency-key", key),))
            return
        except MoltwireError as error:
            if error.code() not in _PASSING:
                raise
        given_up.wait(backoff(failures, _FIRST_WAIT, _LONGEST_WAIT))
        failures += 1
