"""The client of a Moltwire server: every service, an error class for each reason, and `serve` and `work`, by which a program without a port does tasks and jobs."""

from moltwire.client import Moltwire, connect
from moltwire.errors import MoltwireError, Unreachable
from moltwire.json_value import content_of, json_of, json_value
from moltwire.lease import TaskError
from moltwire.reason_errors import *  # noqa: F403
from moltwire.serve import Handler, TaskInHand
from moltwire.work import JobHandler, JobInHand

__all__ = [
    "Handler",
    "JobHandler",
    "JobInHand",
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
