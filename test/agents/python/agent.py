"""An agent written from proto/ alone: a gRPC server of moltwire.agent.v1.AgentRuntimeService.

agent.py PROTO_FOLDER THIRD_PARTY_FOLDER: generates its code, says on standard error where it listens, and ends with its standard input.
It does what the input's "do" says: "echo", "stream", "fail" (with "code"), "wait".
"""

import json
import sys
import tempfile
import time
from concurrent import futures
from importlib import resources
from pathlib import Path

import grpc
from grpc_tools import protoc

folders = [str(Path(folder).resolve()) for folder in sys.argv[1:3]]
generated = tempfile.TemporaryDirectory(prefix="moltwire-python-agent-")
includes = [*folders, str(resources.files("grpc_tools") / "_proto")]
protos = [
    "moltwire/agent/v1/agent_runtime.proto",
    "moltwire/agent/v1/agent_runtime_service.proto",
    "moltwire/api/v1/access.proto",
    "buf/validate/validate.proto",
]
arguments = [f"-I{folder}" for folder in includes]
if protoc.main(["protoc", *arguments, f"--python_out={generated.name}", f"--grpc_python_out={generated.name}", *protos]) != 0:
    sys.exit("the protos could not be compiled")
sys.path.insert(0, generated.name)

from google.protobuf import json_format, struct_pb2  # noqa: E402
from moltwire.agent.v1 import agent_runtime_pb2 as runtime  # noqa: E402
from moltwire.agent.v1 import agent_runtime_service_pb2 as service  # noqa: E402
from moltwire.agent.v1 import agent_runtime_service_pb2_grpc as rpc  # noqa: E402


def answer(value, words=0):
    output = json_format.Parse(json.dumps(value), struct_pb2.Value())
    usage = runtime.Usage(input_tokens=1, output_tokens=words, model="python-1")
    return service.HandleTaskResponse(output=output, usage=usage)


def asked(task, context):
    """What is to be done; ends the call for a failure or a wait."""
    wish = json_format.MessageToDict(task.input)
    if wish["do"] == "fail":
        context.abort(grpc.StatusCode[wish["code"]], "as töld")
    if wish["do"] == "wait":
        while context.is_active():
            time.sleep(0.01)
        context.abort(grpc.StatusCode.CANCELLED, "nobody waits")
    return wish


class Agent(rpc.AgentRuntimeServiceServicer):
    def HandleTask(self, request, context):
        wish = asked(request.task, context)
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        said = {
            "wish": wish,
            "task_id": request.task.task_id,
            "attempt": request.task.attempt,
            "contract": f"{request.task.contract_id}@{request.task.contract_version}",
            "capability": request.task.capability,
            "max_tokens": request.task.max_tokens,
            "metadata": metadata,
            "seconds_left": context.time_remaining(),
        }
        return answer(said)

    def StreamTask(self, request, context):
        wish = asked(request.task, context)
        words = wish["text"].split()
        for number, word in enumerate(words):
            yield service.StreamTaskResponse(progress=runtime.Progress(fraction=number / len(words), message=word))
            yield service.StreamTaskResponse(chunk=word + " ")
            if wish.get("fail_after") == number:
                context.abort(grpc.StatusCode.INTERNAL, "in the middle")
        yield service.StreamTaskResponse(result=answer({"words": len(words)}, len(words)))


server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
rpc.add_AgentRuntimeServiceServicer_to_server(Agent(), server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(f"listening on http://127.0.0.1:{port}", file=sys.stderr, flush=True)
sys.stdin.read()
server.stop(0)
generated.cleanup()
