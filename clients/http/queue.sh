# Jobs: submitted, claimed under a lease, completed; and schedules that submit them.
. "$(dirname "$0")/call.sh"
agent=$(new_agent worker)
queue=$(unique work)

call queue.v1.QueueService/SubmitJob '{"agentId":"'"$agent"'","job":{"queue":"'"$queue"'","payload":{"json":{"url":"https://example.com"}},"priority":8}}'
claimed=$(call queue.v1.QueueService/ClaimJobs '{"agentId":"'"$agent"'","queues":["'"$queue"'"],"lease":"60s"}')
job=$(echo "$claimed" | field jobId)
token=$(echo "$claimed" | field leaseToken)
call queue.v1.QueueService/HeartbeatJob '{"jobId":"'"$job"'","leaseToken":"'"$token"'"}'
call queue.v1.QueueService/CompleteJob '{"jobId":"'"$job"'","leaseToken":"'"$token"'","result":{"json":"done"}}'
ask queue.v1.QueueService/GetJob '{"jobId":"'"$job"'"}'
ask queue.v1.QueueService/GetQueueStats '{}'

schedule=$(call queue.v1.ScheduleService/CreateSchedule '{"agentId":"'"$agent"'","settings":{"timing":{"cron":"0 9 * * 1-5","timeZone":"Europe/Berlin"},"job":{"queue":"'"$queue"'","payload":{"json":"check"}}}}' | field scheduleId)
ask queue.v1.ScheduleService/PreviewSchedule '{"scheduleId":"'"$schedule"'"}'
call queue.v1.ScheduleService/UpdateSchedule '{"scheduleId":"'"$schedule"'","change":{"disabled":true},"updateMask":"disabled"}'
call queue.v1.ScheduleService/DeleteSchedule '{"scheduleId":"'"$schedule"'"}'
