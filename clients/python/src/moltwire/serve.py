"""An agent by BusService/Serve: a stream that is kept open, and the tasks that come on it, each in a thread of its own."""

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc

from moltwire.calls import OnProblem
from moltwire.json_value import json_of, json_value
from moltwire.lease import MAX_PROGRESS, Beating, Hand, failure_of, keep_open, on_terminate, until_answered

if TYPE_CHECKING:
    from moltwire.bus.v1.bus_service_pb2 import ServeRequest, TaskDelivery
    from moltwire.bus.v1.bus_service_pb2_grpc import BusServiceStub

_LOOK_EVERY = 0.5


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
        self._told["progress"] = {"fraction": min(1.0, max(0.0, fraction)), "message": message[:MAX_PROGRESS]}

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
    hand = Hand(lambda delivery, given_up: _work_on(bus, handler, delivery, given_up, options.on_problem))
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
        with on_terminate(options.stop):
            keep_open(stream.read, options.stop, options.on_problem)
            hand.wait_until_empty()
    finally:
        ended.set()
        hand.let_all_go()
        stream.hang_up()


class _Streams:
    """The stream of deliveries, and the one that asks for its end."""

    def __init__(self, bus: "BusServiceStub", request: "ServeRequest", hand: Hand) -> None:
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


def _work_on(bus: "BusServiceStub", handler: Handler, delivery: "TaskDelivery", given_up: threading.Event, on_problem: OnProblem) -> None:
    """Does one task under its lease. Never raises: what goes wrong is an answer to the server, or told to `on_problem`."""
    from moltwire.agent.v1.agent_runtime_pb2 import Progress
    from moltwire.bus.v1.bus_service_pb2 import HeartbeatTaskRequest, RespondTaskRequest, TaskFailure

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

    def beat(timeout: float) -> bool:
        told = task._told.pop("progress", None)
        request = HeartbeatTaskRequest(task_id=task.task_id, lease_token=delivery.lease_token)
        if told:
            request.progress.CopyFrom(Progress(**told))
        return bus.HeartbeatTask(request, timeout=timeout).cancel_requested

    answer = RespondTaskRequest(task_id=given.task_id, lease_token=delivery.lease_token)
    key = (("idempotency-key", f"{given.task_id}-{given.attempt}"),)
    try:
        with Beating(given.task_id, delivery.lease.ToTimedelta().total_seconds(), beat, given_up, on_problem):
            try:
                answer.output.CopyFrom(json_value(handler(task)))
            except Exception as error:  # Whatever the handler raises is how the task went.
                message, retryable = failure_of(error)
                answer.failure.CopyFrom(TaskFailure(message=message, retryable=retryable))
            if "usage" in task._told:
                for name, value in task._told["usage"].items():
                    setattr(answer.usage, name, value)
            until_answered(lambda: bus.RespondTask(answer, metadata=key), given_up)
    except Exception as error:
        if not given_up.is_set():
            on_problem(error)
