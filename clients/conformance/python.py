"""What every client does, by the one for Python; see README.md."""

import json
import os
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import moltwire
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from moltwire.bus.v1 import bus_service_pb2 as bus
from moltwire.memory.v1 import memory_pb2, memory_service_pb2 as memory
from moltwire.queue.v1 import job_pb2, queue_service_pb2 as queue
from moltwire.relay.v1 import relay_service_pb2 as relay


def say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def want(name: str, wants: str) -> None:
    """Waits until something happened to the server."""
    say(case=name, wants=wants)
    sys.stdin.readline()


def failed(call: Callable[[], object]) -> moltwire.MoltwireError:
    try:
        call()
    except moltwire.MoltwireError as error:
        return error
    raise AssertionError("the call was expected to fail")


def shout(task: moltwire.TaskInHand) -> object:
    if not task.input.get("text"):
        raise moltwire.TaskError("there is no text to shout", retryable=False)
    return {"shouted": task.input["text"].upper()}


mw = moltwire.connect()
stop = threading.Event()
serving = threading.Thread(target=lambda: mw.serve(shout, stop=stop), daemon=True)
serving.start()

write = memory.Write(key="greeting", value=memory_pb2.Value(json=moltwire.json_value({"hello": "world"})))
mw.memory.SetEntry(memory.SetEntryRequest(write=write))
read = memory.GetEntryRequest(key="greeting")
say(case="unary", saw=moltwire.content_of(mw.memory.GetEntry(read).entry.value))

# gRPC has no GET: what it is to programs that speak HTTP.
method = memory.DESCRIPTOR.services_by_name["MemoryService"].methods_by_name["GetEntry"]
query = urllib.parse.urlencode({"connect": "v1", "encoding": "json", "message": json_format.MessageToJson(read)})
url = f"{os.environ['MOLTWIRE_URL']}/{method.containing_service.full_name}/{method.name}?{query}"
asked = urllib.request.Request(url, headers={"authorization": f"Bearer {os.environ['MOLTWIRE_API_KEY']}"})
with urllib.request.urlopen(asked, timeout=30) as answer:
    got = json_format.Parse(answer.read(), memory.GetEntryResponse())
say(case="get", saw={"method": asked.get_method(), "value": moltwire.content_of(got.entry.value)})

empty = memory.Write(value=memory_pb2.Value(json=moltwire.json_value(1)))
wrong = failed(lambda: mw.memory.SetEntry(memory.SetEntryRequest(write=empty)))
say(case="error-details", saw={"class": type(wrong).__name__, "reason": wrong.reason, "field": wrong.fields[0][0]})

bad = failed(lambda: moltwire.connect(api_key="mw_wrong").memory.GetEntry(read))
say(case="bad-key", saw={"class": type(bad).__name__, "reason": bad.reason})

wait = Duration()
wait.FromTimedelta(timedelta(seconds=30))
late = failed(lambda: mw.queue.ClaimJobs(queue.ClaimJobsRequest(queues=["none"], wait=wait), timeout=0.3))
say(case="deadline", saw={"class": type(late).__name__, "reason": late.reason})

faulty = moltwire.connect(os.environ["CONFORMANCE_FAULTY_URL"])
ends = []
for n in range(8):
    try:
        faulty.queue.CancelJob(queue.CancelJobRequest(job_id=f"job_{n}"))
        ends.append("done")
    except moltwire.MoltwireError as error:
        ends.append(error.reason)
say(case="retries", saw=ends)

wire = moltwire.connect(os.environ["CONFORMANCE_WIRE_URL"])
once = queue.ListJobsRequest(queue="once")
wire.queue.ListJobs(once)
want("idempotent-retry", "lose the answer")
spec = queue.NewJob(queue="once", payload=job_pb2.Payload(json=moltwire.json_value(1)))
job = wire.queue.SubmitJob(queue.SubmitJobRequest(job=spec)).job
jobs = mw.queue.ListJobs(once).jobs
say(case="idempotent-retry", saw={"jobs": len(jobs), "told": jobs[0].job_id == job.job_id})

heard = []
for message in mw.relay.Subscribe(relay.SubscribeRequest(after_sequence=0)):
    if message.WhichOneof("event") != "message":
        continue
    heard.append(moltwire.content_of(message.message.payload))
    if len(heard) == 20:
        want("stream-resume", "kill the server")
    if len(heard) == 40:
        want("stream-resume", "roll the servers")
    if len(heard) == 60:
        break
say(case="stream-resume", saw=heard)

contract = os.environ["CONFORMANCE_CONTRACT_ID"]
output = mw.call(contract, {"text": "hello"})
reason = failed(lambda: mw.call(contract, {})).reason
again = bus.SubmitTaskRequest(contract_id=contract, input=moltwire.json_value({"text": "again"}))
task = mw.bus.SubmitTask(again).task
stop.set()
serving.join(60)
say(case="serve", saw={"output": output, "reason": reason, "ended": not serving.is_alive()})

last = None
for step in mw.bus.WatchTask(bus.WatchTaskRequest(task_id=task.task_id)):
    last = step.WhichOneof("event")
say(case="stream-end", saw=last)

enough = threading.Event()


def work(job: moltwire.JobInHand) -> object:
    if job.attempt == 1:
        raise RuntimeError("once more")
    job.progress(0.5, "half")
    while mw.queue.GetJob(queue.GetJobRequest(job_id=job.job_id)).job.progress.fraction != 0.5:
        time.sleep(0.1)
    enough.set()
    return {"shouted": job.payload["text"].upper()}


working = threading.Thread(target=lambda: mw.work(work, queues=["work"], lease=15, stop=enough), daemon=True)
working.start()
soon = Duration(nanos=10_000_000)
backoff = job_pb2.Backoff(initial=soon, max=soon)
spec = queue.NewJob(queue="work", payload=job_pb2.Payload(json=moltwire.json_value({"text": "hello"})), max_attempts=3, backoff=backoff)
job_id = mw.queue.SubmitJob(queue.SubmitJobRequest(job=spec)).job.job_id
working.join(120)
job = mw.queue.GetJob(queue.GetJobRequest(job_id=job_id)).job
say(case="work", saw={"result": moltwire.content_of(job.result), "attempts": job.attempts, "ended": not working.is_alive()})
mw.close()
