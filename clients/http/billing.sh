# Credits: 1 credit is 1,000,000 micros.
. "$(dirname "$0")/call.sh"
agent=$(new_agent earner)

ask exchange.v1.BillingService/GetBalance '{}'
call exchange.v1.BillingService/TopUp '{"amountMicros":"5000000","reference":"invoice 42"}'
call exchange.v1.BillingService/TransferCredits '{"toAgentId":"'"$agent"'","amountMicros":"1000000"}'
ask exchange.v1.BillingService/GetBalance '{"agentId":"'"$agent"'"}'
ask exchange.v1.BillingService/ListTransactions '{"pageSize":5}'
