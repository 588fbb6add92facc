# Many calls in one request, each answered for itself.
. "$(dirname "$0")/call.sh"
agent=$(new_agent batcher)

set_entry() { echo '{"method":"moltwire.memory.v1.MemoryService/SetEntry","json":{"agentId":"'"$agent"'","write":{"key":"'"$1"'","value":{"json":'"$2"'}}},"idempotencyKey":"'"$agent-$1"'"}'; }
call batch.v1.BatchService/Execute '{"calls":['"$(set_entry a 1)"','"$(set_entry b 2)"']}'
call batch.v1.BatchService/Execute '{"calls":[{"method":"moltwire.memory.v1.MemoryService/GetEntry","json":{"agentId":"'"$agent"'","key":"a"}}]}'
