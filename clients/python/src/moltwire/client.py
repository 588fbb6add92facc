"""The way to a server for one key."""

import os
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import grpc

from moltwire.calls import Calls, OnProblem
from moltwire.errors import task_failure
from moltwire.json_value import json_of, json_value
from moltwire.serve import Handler, ServeOptions, serve_tasks
from moltwire.services import Services
from moltwire.work import JobHandler, WorkOptions, work_jobs

_MAX_MESSAGE_BYTES = 16 << 20
_OPTIONS = [
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    # Connections are opened anew at the pace of the calls, and one that died without a word is noticed within some 20 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # How long a connection may take to be made, in spite of its name.
    ("grpc.min_reconnect_backoff_ms", 10_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Each connection is one of its own, also to the same server.
    ("grpc.use_local_subchannel_pool", 1),
    # Calls are sent again here, by what their errors say.
    ("grpc.enable_retries", 0),
]


def connect(
    url: str | None = None,
    api_key: str | None = None,
    *,
    timeout: float = 90.0,
    max_attempts: int = 5,
    on_problem: OnProblem | None = None,
    root_certificates: bytes | None = None,
) -> "Moltwire":
    """Stubs of every service over one connection, which is opened at the first call and again whenever it breaks.

    Commands have an idempotency key, one for all attempts; a call is sent again only where its error says so. Feeds go on over lost connections. What
    fails, fails with the class of its reason.

    Args:
        url: Where the server listens. Default: the variable MOLTWIRE_URL, or `http://127.0.0.1:6658`.
        api_key: The caller's key. Default: the variable MOLTWIRE_API_KEY.
        timeout: How long a unary call may take, with all its attempts, in seconds, unless it says so itself. 0: for ever. Not of SubmitTask, whose deadline
            becomes the task's.
        max_attempts: How often a unary call is sent at most, and a feed that has not begun. 1: never again.
        on_problem: Hears of each failure before the call is sent again, and before a feed is opened anew. Default: nobody.
        root_certificates: PEM authorities for https, instead of the machine's.
    """
    where = urlsplit(url or os.environ.get("MOLTWIRE_URL") or "http://127.0.0.1:6658")
    if where.scheme not in ("http", "https") or not where.hostname:
        raise ValueError(f"{where.geturl()} is no URL of http or https")
    if max_attempts < 1:
        raise ValueError("max_attempts is less than 1")
    host = f"[{where.hostname}]" if ":" in where.hostname else where.hostname
    target = f"{host}:{where.port or (443 if where.scheme == 'https' else 80)}"
    if where.scheme == "https":
        channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(root_certificates), _OPTIONS)
    else:
        channel = grpc.insecure_channel(target, _OPTIONS)
    key = api_key if api_key is not None else os.environ.get("MOLTWIRE_API_KEY")
    return Moltwire(channel, Calls(key, timeout, max_attempts, on_problem or (lambda error: None)))


class Moltwire(Services):
    """The stubs of every service for one key (`mw.bus`, `mw.memory`, …), and what is said often in one word."""

    def __init__(self, channel: grpc.Channel, calls: Calls) -> None:
        super().__init__(grpc.intercept_channel(channel, calls))
        self._own = channel

    def close(self) -> None:
        """Ends the connection, and what still runs on it."""
        self._own.close()

    def __enter__(self) -> "Moltwire":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def call(self, contract_id: str, input: Any, **fields: Any) -> Any:
        """Has a task done, and gives its output. The other fields of SubmitTaskRequest go by their names.

        Raises the error of the call, or that of the task (its id is `about["task_id"]`), each of the class of its reason. A task that somebody has to approve first
        is awaited until it has ended.
        """
        from moltwire.bus.v1.bus_service_pb2 import SubmitTaskRequest, WatchTaskRequest
        from moltwire.bus.v1.task_pb2 import TASK_STATE_COMPLETED

        task = self.bus.SubmitTask(SubmitTaskRequest(contract_id=contract_id, input=json_value(input), **fields)).task
        if not task.HasField("end_time"):
            for message in self.bus.WatchTask(WatchTaskRequest(org_id=task.org_id, task_id=task.task_id)):
                if message.HasField("task"):
                    task = message.task
        if task.state != TASK_STATE_COMPLETED:
            raise task_failure(task.task_id, task.error)
        return json_of(task.output)

    def serve(self, handler: Handler, **options: Any) -> None:
        """Does the tasks of the key's agent, whose endpoint must be `pull`, until `stop` is set or the process gets SIGTERM (where this is the main thread): then
        nothing new is taken, what is in hand is finished, and it returns. Raises when the server refuses for good, such as for a revoked key. Everything else is
        tried again. The options are those of `ServeOptions`.
        """
        serve_tasks(self.bus, handler, ServeOptions(**options))

    def work(self, handler: JobHandler, **options: Any) -> None:
        """Does the jobs of queues, as `serve` does tasks. The options are those of `WorkOptions`."""
        work_jobs(self.queue, handler, WorkOptions(**options))
