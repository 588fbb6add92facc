"""What every call goes through: its key, its deadline, being sent again where its error says so; and feeds that go on over lost connections."""

import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, MethodDescriptor

from moltwire.api.v1 import access_pb2
from moltwire.errors import MoltwireError, Unreachable, typed_error

OnProblem = Callable[[Exception], None]

# The reasons whose documentation says to try again, without saying when.
_AGAIN = {"STILL_RUNNING", "SHUTTING_DOWN", "OUTCOME_UNKNOWN", "OVERLOADED", "STORAGE_UNAVAILABLE"}
_FIRST_WAIT = 0.1
_LONGEST_WAIT = 5.0
_LONGEST_FEED_WAIT = 10.0

# What a message says of its place, and what the request has to say to go on after it.
_PLACES = (("cursor", "after_cursor"), ("sequence", "after_sequence"), ("revision", "after_revision"))
# What says where to begin, and may not stand beside a place.
_BEGINNINGS = ("start", "from_start")


class Details(NamedTuple):
    """What gRPC wants to know of a call."""

    method: str
    timeout: float | None
    metadata: list[tuple[str, str | bytes]]
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: Any


@lru_cache(maxsize=None)
def method_of(path: str) -> MethodDescriptor:
    """The method of a path such as `/moltwire.bus.v1.BusService/GetTask`."""
    service, name = path.lstrip("/").split("/")
    return descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]


def kind_of(method: MethodDescriptor) -> int:
    """What a method promises: a `moltwire.api.v1.Kind`."""
    return method.GetOptions().Extensions[access_pb2.access].kind


@lru_cache(maxsize=None)
def place_of(path: str) -> tuple[str, str] | None:
    """Where a feed tells its place, and where a request says to go on after it. None for what is no feed, and for feeds of work, which have none."""
    method = method_of(path)
    if kind_of(method) != access_pb2.KIND_FEED:
        return None

    def has(message: Descriptor, name: str) -> bool:
        return name in message.fields_by_name

    return next(((told, after) for told, after in _PLACES if has(method.output_type, told) and has(method.input_type, after)), None)


def backoff(failures: int, first: float, longest: float) -> float:
    """The wait after so many failures in a row: doubled each time up to `longest`, and by chance down to half of that."""
    return min(longest, first * 2.0 ** min(failures, 20)) * (0.5 + random.random() / 2)


def retry_wait(error: Exception, failures: int, longest: float = _LONGEST_WAIT) -> float | None:
    """How long to wait before the same call is worth sending again; None when it is not. What the server says (RetryInfo) is kept to."""
    if not isinstance(error, MoltwireError):
        return None
    if error.retry_after is not None:
        return error.retry_after + random.random() * _FIRST_WAIT
    if error.reason not in _AGAIN and not isinstance(error, Unreachable):
        return None
    return backoff(failures, _FIRST_WAIT, longest)


class Calls(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
):
    """The interceptor of a connection."""

    def __init__(self, api_key: str | None, timeout: float, max_attempts: int, on_problem: OnProblem) -> None:
        self._api_key = api_key
        self._timeout = timeout
        self._max_attempts = max_attempts
        self._on_problem = on_problem

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Sends a call at most `max_attempts` times, within its deadline, with one idempotency key."""
        details = self._unary_details(client_call_details)
        deadline = None if details.timeout is None else time.monotonic() + details.timeout
        for failures in range(self._max_attempts):
            left = None if deadline is None else max(deadline - time.monotonic(), 0.001)
            call = continuation(details._replace(timeout=left), request)
            thrown = call.exception()
            if thrown is None:
                return call
            error = typed_error(thrown)
            wait = retry_wait(error, failures)
            is_last = failures + 1 == self._max_attempts or wait is None or wait > _LONGEST_WAIT + _FIRST_WAIT
            if wait is None or is_last or (deadline is not None and time.monotonic() + wait > deadline):
                raise error from thrown
            self._on_problem(error)
            time.sleep(wait)
        raise AssertionError("max_attempts is at least 1")

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """A feed that resumes by itself; any other stream as it is, with typed errors."""
        details = self._with_key(client_call_details)

        def opened(request: Any) -> Any:
            return continuation(details, request)

        place = place_of(details.method)
        if place is None:
            return Stream(opened(request))
        return Feed(opened, request, place, self._max_attempts, self._on_problem)

    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        """A conversation: with the key, and typed errors."""
        return Stream(continuation(self._with_key(client_call_details), request_iterator))

    def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        """With the key, and typed errors."""
        call = continuation(self._with_key(client_call_details), request_iterator)
        thrown = call.exception()
        if thrown is not None:
            raise typed_error(thrown) from thrown
        return call

    def _with_key(self, given: Any) -> Details:
        metadata = list(given.metadata or ())
        if self._api_key is not None:
            metadata.append(("authorization", f"Bearer {self._api_key}"))
        return Details(given.method, given.timeout, metadata, given.credentials, given.wait_for_ready, given.compression)

    def _unary_details(self, given: Any) -> Details:
        details = self._with_key(given)
        method = method_of(details.method)
        has_key = any(key == "idempotency-key" for key, _ in details.metadata)
        # A heartbeat needs none: a second one does what the first did.
        if kind_of(method) == access_pb2.KIND_COMMAND and not method.name.startswith("Heartbeat") and not has_key:
            details.metadata.append(("idempotency-key", secrets.token_hex(16)))
        # The deadline of SubmitTask becomes the task's, which takes as long as its contract lets it.
        if details.timeout is None and self._timeout > 0 and method.name != "SubmitTask":
            details = details._replace(timeout=self._timeout)
        return details


class Stream:
    """A stream of messages with typed errors. `cancel` ends it; so does its garbage collection."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._call)
        except grpc.RpcError as error:
            raise typed_error(error) from error

    def cancel(self) -> None:
        """Hangs up."""
        self._call.cancel()


class Feed:
    """A feed that goes on over lost connections: nothing is lost, repeated or reordered, since each round begins after the last message that was taken.

    Until it has begun it is tried `max_attempts` times; after that for ever. `cancel` ends it, also from another thread.
    """

    def __init__(self, opened: Callable[[Any], Any], request: Any, place: tuple[str, str], max_attempts: int, on_problem: OnProblem) -> None:
        self._opened = opened
        self._request = request
        self._place = place
        self._max_attempts = max_attempts
        self._on_problem = on_problem
        self._has_begun = False
        self._failures = 0
        self._canceled = threading.Event()
        self._call = opened(request)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        while True:
            try:
                message = next(self._call)
            except grpc.RpcError as thrown:
                if not self._canceled.is_set():
                    self._wait_after(thrown)
                if self._canceled.is_set():
                    raise StopIteration from None
                self._call = self._opened(self._request)
                if self._canceled.is_set():
                    self._call.cancel()
                continue
            told, after = self._place
            self._request = _after(self._request, after, getattr(message, told))
            self._has_begun = True
            self._failures = 0
            return message

    def cancel(self) -> None:
        """Hangs up: the loop over it ends."""
        self._canceled.set()
        self._call.cancel()

    def _wait_after(self, thrown: grpc.RpcError) -> None:
        error = typed_error(thrown)
        wait = retry_wait(error, self._failures, _LONGEST_FEED_WAIT)
        self._failures += 1
        if wait is None or (not self._has_begun and self._failures >= self._max_attempts):
            raise error from thrown
        self._on_problem(error)
        self._canceled.wait(wait)


def _after(request: Any, field: str, place: Any) -> Any:
    """The request with which to go on after this place."""
    following = type(request)()
    following.CopyFrom(request)
    for name in _BEGINNINGS:
        if name in request.DESCRIPTOR.fields_by_name:
            following.ClearField(name)
    setattr(following, field, place)
    return following
