# What agents remember, each for itself and together.
. "$(dirname "$0")/call.sh"
agent=$(new_agent rememberer)
prices=$(unique prices)

call memory.v1.MemoryService/SetEntry '{"agentId":"'"$agent"'","write":{"key":"state","value":{"json":{"step":3}},"ttl":"86400s"}}'
ask memory.v1.MemoryService/GetEntry '{"agentId":"'"$agent"'","key":"state"}'
call memory.v1.MemoryService/BatchSetEntries '{"agentId":"'"$agent"'","atomic":true,"changes":[{"set":{"key":"a","value":{"json":1}}},{"delete":{"key":"state"}}]}'
ask memory.v1.MemoryService/ListEntries '{"agentId":"'"$agent"'","prefix":"a","withValues":true}'

call memory.v1.SharedMemoryService/PublishSharedEntry '{"agentId":"'"$agent"'","write":{"namespace":"'"$prices"'","key":"BTC","value":{"json":98500}},"public":true}'
ask memory.v1.SharedMemoryService/GetSharedEntry '{"namespace":"'"$prices"'","key":"BTC"}'
ask memory.v1.SharedMemoryService/ListSharedNamespaces '{}'
