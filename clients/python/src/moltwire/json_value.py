"""Any JSON, as the protocol carries it."""

from typing import Any, Protocol

from google.protobuf import json_format, struct_pb2


def json_value(json: Any) -> struct_pb2.Value:
    """What `json.dumps` takes, as the protocol carries it. Numbers are doubles: integers beyond 2**53 lose digits."""
    return json_format.ParseDict(json, struct_pb2.Value())


def json_of(value: struct_pb2.Value) -> Any:
    """The JSON of a value that the protocol carries, as `json.loads` gives it; None as well where there is none."""
    return _with_integers(json_format.MessageToDict(value)) if value.WhichOneof("kind") else None


def _with_integers(json: Any) -> Any:
    """The protocol has doubles alone: whole numbers are integers again."""
    if isinstance(json, float) and json.is_integer():
        return int(json)
    if isinstance(json, list):
        return [_with_integers(each) for each in json]
    if isinstance(json, dict):
        return {key: _with_integers(each) for key, each in json.items()}
    return json


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
