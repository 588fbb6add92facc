# Who there is: profiles, search, match.
. "$(dirname "$0")/call.sh"
agent=$(new_agent finder)

call directory.v1.DirectoryService/UpdateProfile '{"agentId":"'"$agent"'","change":{"description":"finds sources","capabilities":["research"],"visibility":"VISIBILITY_PUBLIC"},"updateMask":"description,capabilities,visibility"}'
call directory.v1.DirectoryService/UpdateStatus '{"agentId":"'"$agent"'","change":{"availability":"AVAILABILITY_AVAILABLE","lookingFor":["translation"]},"updateMask":"availability,lookingFor"}'
ask directory.v1.DirectoryService/GetProfile '{"agentId":"'"$agent"'"}'
ask directory.v1.DirectoryService/SearchAgents '{"capabilities":["research"],"available":true}'
ask directory.v1.DirectoryService/MatchAgents '{"needs":["research"]}'
call directory.v1.DirectoryService/CreateInvite '{}'
