"""What every error of a Moltwire server has, and how it is read off the wire. The classes of the reasons are in reason_errors.py."""

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, cast

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

if TYPE_CHECKING:
    from moltwire.bus.v1.task_pb2 import TaskError as TaskFailure

_DOMAIN = "moltwire.dev"
# What a lost connection is told as, when no server said it.
_LOST = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
}


class MoltwireError(grpc.RpcError):
    """A call, or a task, failed for a reason that the server told.

    There is a subclass for each reason, with the reason's values as properties; a reason that this version of the client does not know, of a newer
    server, is of this class itself.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        code: grpc.StatusCode,
        about: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        fields: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(f"[{code.name.lower()}] {message}")
        self.reason = reason
        """The name of the reason, such as `BUDGET_EXCEEDED`."""
        self.message = message
        self._code = code
        self.about: Mapping[str, str] = about or {}
        """The values the reason names, as they came."""
        self.retry_after = retry_after
        """How long the server says to wait before the same call is worth repeating, in seconds. None: it says nothing."""
        self.retry_at = None if retry_after is None else datetime.now(timezone.utc) + timedelta(seconds=retry_after)
        """When that is, by the clock of this machine."""
        self.fields = fields
        """Every field of the request that is wrong, and what is wrong with it."""

    def code(self) -> grpc.StatusCode:
        """The code of gRPC."""
        return self._code

    def details(self) -> str:
        """The message, as of every error of gRPC."""
        return self.message

    @property
    def trace_id(self) -> str | None:
        """The trace in which the call stands, in the server's log too."""
        return self._text("trace_id")

    def _text(self, key: str) -> str | None:
        return self.about.get(key)

    def _number(self, key: str) -> float | None:
        try:
            return float(self.about[key])
        except (KeyError, ValueError):
            return None

    def _time(self, key: str) -> datetime | None:
        try:
            return datetime.fromisoformat(self.about[key].replace("Z", "+00:00"))
        except (KeyError, ValueError):
            return None


class Unreachable(MoltwireError):
    """No Moltwire server answered, or the connection was lost before the answer came: whether a command was carried out is not known."""

    def __init__(self, message: str) -> None:
        super().__init__("UNREACHABLE", message, grpc.StatusCode.UNAVAILABLE)


def reason_error(reason: str, *failure: Any) -> MoltwireError:
    """The error of a reason, of its class."""
    from moltwire.reason_errors import REASON_ERRORS

    return REASON_ERRORS.get(reason, MoltwireError)(reason, *failure)


def typed_error(error: grpc.RpcError) -> grpc.RpcError:
    """The error as callers get it: of the class of its reason; `Unreachable` when no server told one; `DeadlineExceeded` when this side's deadline passed.

    What is none of these, such as a call that the caller canceled, stays the error it was.
    """
    if isinstance(error, MoltwireError):
        return error
    call = cast(grpc.Call, error)
    code, message = call.code(), call.details() or ""
    details = _details(call)
    info = _detail(details, ErrorInfo)
    if info and info.domain == _DOMAIN:
        retry = _detail(details, RetryInfo)
        wrong = _detail(details, BadRequest)
        fields = tuple((each.field, each.description) for each in wrong.field_violations) if wrong else ()
        after = retry.retry_delay.ToTimedelta().total_seconds() if retry else None
        return reason_error(info.reason, message, code, dict(info.metadata), after, fields)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return reason_error("DEADLINE_EXCEEDED", message, code)
    return Unreachable(message) if code in _LOST else error


def task_failure(task_id: str, error: "TaskFailure") -> MoltwireError:
    """The error with which a task ended, of the class of its reason."""
    from moltwire.api.v1.error_reason_pb2 import ErrorReason

    reason = ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_") if error.reason in ErrorReason.values() else str(error.reason)
    about = {**error.metadata, "task_id": task_id}
    return reason_error(reason, error.message or "the task did not complete", grpc.StatusCode.ABORTED, about)


def _details(call: grpc.Call) -> list[AnyMessage]:
    for key, value in call.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            try:
                return list(Status.FromString(value).details)
            except DecodeError:
                return []
    return []


def _detail(details: list[AnyMessage], kind: Any) -> Any:
    for each in details:
        if each.Is(kind.DESCRIPTOR):
            message = kind()
            each.Unpack(message)
            return message
    return None
