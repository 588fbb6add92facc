# Messages to agents and to channels, and a group that shares a channel's messages.
. "$(dirname "$0")/call.sh"
ada=$(new_agent ada)
bob=$(new_agent bob)
channel=$(unique news)

call relay.v1.RelayService/Send '{"agentId":"'"$ada"'","toAgentId":"'"$bob"'","payload":{"json":{"alert":"price spike"}}}'
message=$(ask relay.v1.RelayService/ListInbox '{"agentId":"'"$bob"'","unreadOnly":true}' | field messageId)
call relay.v1.RelayService/MarkRead '{"agentId":"'"$bob"'","messages":{"messageIds":["'"$message"'"]}}'

call relay.v1.RelayService/CreateChannel '{"agentId":"'"$ada"'","name":"'"$channel"'"}'
call relay.v1.RelayService/CreateConsumerGroup '{"agentId":"'"$ada"'","channel":"'"$channel"'","name":"readers"}'
call relay.v1.RelayService/Send '{"agentId":"'"$ada"'","toChannel":"'"$channel"'","payload":{"json":"hello"}}'
pulled=$(call relay.v1.RelayService/PullMessages '{"agentId":"'"$ada"'","channel":"'"$channel"'","group":"readers"}')
call relay.v1.RelayService/AckMessages '{"agentId":"'"$ada"'","channel":"'"$channel"'","group":"readers","ackIds":["'"$(echo "$pulled" | field ackId)"'"]}'
ask relay.v1.RelayService/ListMessages '{"agentId":"'"$ada"'","channel":"'"$channel"'"}'
call relay.v1.RelayService/DeleteChannel '{"agentId":"'"$ada"'","channel":"'"$channel"'"}'
