"""Any JSON, as the protocol carries it."""

from typing import Any, Protocol

from google.protobuf import json_format, struct_pb2


def json_value(json: Any) -> struct_pb2.Value:
    """What `json.dumps` takes, as the protocol carries it. Numbers are doubles: integers beyond 2**53 lose digits."""
    return json_format.ParseDict(json, struct_pb2.Value())


def json_of(value: struct_pb2.Value) -> Any:
    """The JSON of a value that the protocol carries; None as well where there is none."""
    return json_format.MessageToDict(value) if value.WhichOneof("kind") else None


class _Content(Protocol):
    @property
    def json(self) -> struct_pb2.Value: ...
    @property
    def data(self) -> bytes: ...
    def WhichOneof(self, oneof_group: Any, /) -> Any: ...


def content_of(payload: _Content) -> Any:
    """The content of such a message: its JSON, or its bytes. None as well where there is none, as in lists."""
    kind = payload.WhichOneof("kind")
    return payload.data if kind == "data" else json_of(payload.json) if kind == "json" else None
