"""A worker by QueueService/Work: a stream that is kept open, and the jobs that come on it, each in a thread of its own."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from moltwire.calls import OnProblem
from moltwire.json_value import content_of, json_value
from moltwire.lease import MAX_PROGRESS, Beating, Hand, failure_of, keep_open, on_terminate, until_answered

if TYPE_CHECKING:
    from moltwire.queue.v1.job_pb2 import Job, LeasedJob
    from moltwire.queue.v1.queue_service_pb2_grpc import QueueServiceStub

_LOOK_EVERY = 0.5


@dataclass(frozen=True)
class JobInHand:
    """A job in the hands of a handler."""

    job_id: str
    queue: str
    attempt: int
    """From 1."""
    payload: Any
    """What to do: JSON or bytes; None as well when the job has no payload."""
    job: "Job"
    """Everything else of it, such as its tags and the progress of the attempt before."""
    traceparent: str
    """The W3C trace context to send on with calls: `metadata=[("traceparent", job.traceparent)]`."""
    given_up: threading.Event = field(default_factory=threading.Event)
    """Is set when the job is canceled or another's: its result is not used any more."""
    _told: dict[str, Any] = field(default_factory=dict)

    def progress(self, fraction: float, message: str = "", details: dict[str, Any] | None = None) -> None:
        """Tells how far the work is, from 0 to 1, with the next heartbeat, and where another attempt can go on (`details`, at most 4 KiB)."""
        self._told["progress"] = (min(1.0, max(0.0, fraction)), message[:MAX_PROGRESS], details)


JobHandler = Callable[[JobInHand], Any]
"""Does one job: gives its result (bytes, what `json.dumps` takes, or None for none), or raises."""


@dataclass(frozen=True)
class WorkOptions:
    """How jobs are worked on."""

    queues: Sequence[str] = ()
    """The queues to take from. Default: `default`."""
    capacity: int = 1
    """How many jobs are in work at once, from 1 to 100, each in a thread."""
    lease: float = 30.0
    """How long the server waits for a sign of life of a job, in seconds, from 1 to 3,600. Heartbeats go out by themselves in every third of it."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Set it to end the work; jobs in hand are finished. SIGTERM does the same. What was on its way then is another's when its lease has run out."""
    agent_id: str = ""
    """The agent to work for, with an administrator's key."""
    on_problem: OnProblem = lambda error: None
    """Hears why the stream broke, before it is opened anew, and why a result or a heartbeat did not arrive. Default: nobody."""


def work_jobs(queues: "QueueServiceStub", handler: JobHandler, options: WorkOptions) -> None:
    """See `Moltwire.work`."""
    from moltwire.queue.v1.queue_service_pb2 import WorkRequest

    request = WorkRequest(queues=options.queues, capacity=options.capacity, agent_id=options.agent_id)
    request.lease.FromTimedelta(timedelta(seconds=options.lease))
    # A stream that is opened anew brings jobs while those of the one before are still in work: they wait here, under their leases.
    places = threading.Semaphore(options.capacity)

    def handle(job: JobInHand) -> Any:
        with places:
            return None if job.given_up.is_set() else handler(job)

    hand = Hand(lambda leased, given_up: _do(queues, handle, leased, given_up, options))
    open_now: list[Any] = []
    ended = threading.Event()

    def read(heard: Callable[[], None]) -> None:
        call = queues.Work(request)
        open_now.append(call)
        try:
            # Whoever stops meanwhile finds the call, or is found here.
            if options.stop.is_set():
                return
            for message in call:
                heard()
                if message.HasField("job"):
                    hand.take(message.job.job.job_id, message.job)
                elif message.HasField("lost_job_id"):
                    hand.let_go(message.lost_job_id)
        finally:
            open_now.remove(call)
            call.cancel()

    def hang_up() -> None:
        # An event that is never set is not waited for when the work is over for another reason.
        while not options.stop.wait(_LOOK_EVERY):
            if ended.is_set():
                return
        for call in list(open_now):
            call.cancel()

    threading.Thread(target=hang_up, name="moltwire-stop", daemon=True).start()
    try:
        with on_terminate(options.stop):
            keep_open(read, options.stop, options.on_problem)
            hand.wait_until_empty()
    finally:
        ended.set()
        hand.let_all_go()


def _do(queues: "QueueServiceStub", handler: JobHandler, leased: "LeasedJob", given_up: threading.Event, options: WorkOptions) -> None:
    """Does one job under its lease. Never raises: what goes wrong is an answer to the server, or told to `on_problem`."""
    from moltwire.queue.v1.job_pb2 import JobError, JobProgress, Payload
    from moltwire.queue.v1.queue_service_pb2 import CompleteJobRequest, FailJobRequest, HeartbeatJobRequest

    job, token = leased.job, leased.lease_token
    in_hand = JobInHand(
        job_id=job.job_id,
        queue=job.queue,
        attempt=job.attempts,
        payload=content_of(job.payload),
        job=job,
        traceparent=f"00-{job.trace_id}-{job.span_id}-01" if job.trace_id and job.span_id else "",
        given_up=given_up,
    )

    def beat(timeout: float) -> bool:
        request = HeartbeatJobRequest(job_id=job.job_id, lease_token=token)
        told = in_hand._told.pop("progress", None)
        if told:
            fraction, message, details = told
            request.progress.CopyFrom(JobProgress(fraction=fraction, message=message))
            if details is not None:
                request.progress.details.update(details)
        return queues.HeartbeatJob(request, timeout=timeout).cancel_requested

    key = (("idempotency-key", f"{job.job_id}-{job.attempts}"),)
    try:
        with Beating(job.job_id, options.lease, beat, given_up, options.on_problem):
            complete = CompleteJobRequest(job_id=job.job_id, lease_token=token)
            try:
                result = handler(in_hand)
                if result is not None:
                    complete.result.CopyFrom(Payload(data=result) if isinstance(result, bytes) else Payload(json=json_value(result)))
            except Exception as error:  # Whatever the handler raises is how the job went.
                message, retryable = failure_of(error)
                fail = FailJobRequest(job_id=job.job_id, lease_token=token, error=JobError(message=message), retryable=retryable)
                until_answered(lambda: queues.FailJob(fail, metadata=key), given_up)
            else:
                until_answered(lambda: queues.CompleteJob(complete, metadata=key), given_up)
    except Exception as error:
        if not given_up.is_set():
            options.on_problem(error)
