# Contracts, agents, tasks, traces.
. "$(dirname "$0")/call.sh"
contract=$(unique repeat)

call bus.v1.AgentService/RegisterAgent '{"name":"'"$(unique parrot)"'","capabilities":["'"$contract"'"],"endpoint":{"echo":{}}}'
call bus.v1.ContractService/RegisterContract '{"contractId":"'"$contract"'","version":"1.0.0","inputSchema":{"type":"object","required":["text"]}}'
call bus.v1.ContractService/CheckContract '{"contractId":"'"$contract"'","inputSchema":{"type":"object","required":["text","language"]}}'
# A dry run: what would be decided.
call bus.v1.BusService/SubmitTask '{"contractId":"'"$contract"'","input":{"text":"hello"},"validateOnly":true}'
done=$(call bus.v1.BusService/SubmitTask '{"contractId":"'"$contract"'","input":{"text":"hello"}}')
echo "$done"
ask bus.v1.BusService/GetTask '{"taskId":"'"$(echo "$done" | field taskId)"'"}'
ask bus.v1.TraceService/GetTrace '{"traceId":"'"$(echo "$done" | field traceId)"'"}'
ask bus.v1.PolicyService/ListDecisions '{"pageSize":1}'
ask bus.v1.CostService/ListAgentCosts '{}'
