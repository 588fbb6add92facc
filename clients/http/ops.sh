# How the server does, what happened, who did what.
. "$(dirname "$0")/call.sh"

ask ops.v1.StatusService/GetStatus '{}'
ask ops.v1.StatusService/GetSla '{}'
ask ops.v1.AdminService/GetOverview '{}'
ask ops.v1.AdminService/ListAuditEvents '{"pageSize":5}'
ask ops.v1.EventService/ListEvents '{"pageSize":5}'
ask ops.v1.MaintenanceService/GetVaultStatus '{}'
# Anybody may write to the operator.
call ops.v1.ContactService/SubmitContact '{"name":"Ada","email":"ada@example.com","subject":"Hello","message":"It works."}'
