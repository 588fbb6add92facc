# Events told to a URL.
. "$(dirname "$0")/call.sh"

made=$(call webhook.v1.WebhookService/CreateWebhook '{"url":"https://hooks.example.com/moltwire","eventTypes":["message.received","job.*"]}')
# Its secret is shown this once.
echo "$made"
webhook=$(echo "$made" | field webhookId)
ask webhook.v1.WebhookService/ListWebhooks '{}'
call webhook.v1.WebhookService/UpdateWebhook '{"webhookId":"'"$webhook"'","change":{"disabled":true},"updateMask":"disabled"}'
ask webhook.v1.WebhookService/ListDeliveries '{"webhookId":"'"$webhook"'"}'
call webhook.v1.WebhookService/RotateSecret '{"webhookId":"'"$webhook"'"}'
call webhook.v1.WebhookService/DeleteWebhook '{"webhookId":"'"$webhook"'"}'
