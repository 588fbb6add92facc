"""The client of a Moltwire server: every service, an error class for each reason, and `serve`, by which a program without a port is an agent."""

from moltwire.client import Moltwire, connect
from moltwire.errors import MoltwireError, Unreachable
from moltwire.json_value import content_of, json_of, json_value
from moltwire.reason_errors import *  # noqa: F403
from moltwire.serve import Handler, TaskError, TaskInHand

__all__ = [
    "Handler",
    "Moltwire",
    "MoltwireError",
    "TaskError",
    "TaskInHand",
    "Unreachable",
    "connect",
    "content_of",
    "json_of",
    "json_value",
]
