# Agents that coordinate, to see what holds: one of them leads, whatever goes wrong.
. "$(dirname "$0")/call.sh"

scenario=$(call lab.v1.ScenarioService/CreateScenario '{"pattern":"PATTERN_LEADER_ELECTION","agentCount":3,"seed":"7","timeout":"10s"}' | field scenarioId)
call lab.v1.ScenarioService/RunScenario '{"scenarioId":"'"$scenario"'"}'
while ask lab.v1.ScenarioService/ListScenarios '{"state":"SCENARIO_STATE_RUNNING"}' | grep -q "$scenario"; do sleep 1; done
ask lab.v1.ScenarioService/GetScenarioResults '{"scenarioId":"'"$scenario"'"}'
