# Organisations, keys, and a grant from one to another.
. "$(dirname "$0")/call.sh"

acme=$(call federation.v1.OrganizationService/CreateOrganization '{"name":"'"$(unique acme)"'"}' | field orgId)
widget=$(call federation.v1.OrganizationService/CreateOrganization '{"name":"'"$(unique widget)"'"}' | field orgId)
call federation.v1.NamespaceService/CreateNamespace '{"orgId":"'"$acme"'","name":"sales"}'
key=$(call federation.v1.ApiKeyService/CreateApiKey '{"orgId":"'"$acme"'","role":"ROLE_ORG","name":"ci","scopes":["tasks:*"]}' | field keyId)
call federation.v1.ApiKeyService/RevokeApiKey '{"orgId":"'"$acme"'","keyId":"'"$key"'"}'

grant=$(call federation.v1.GrantService/CreateGrant '{"orgId":"'"$acme"'","granteeOrgId":"'"$widget"'","capability":"research","terms":{"tokensPerDay":"50000"}}' | field grantId)
call federation.v1.GrantService/AcceptGrant '{"orgId":"'"$widget"'","grantId":"'"$grant"'"}'
ask federation.v1.GrantService/GetGrantUsage '{"orgId":"'"$acme"'","grantId":"'"$grant"'"}'
ask federation.v1.GatewayService/ListContracts '{"orgId":"'"$widget"'"}'
call federation.v1.GrantService/RevokeGrant '{"orgId":"'"$acme"'","grantId":"'"$grant"'"}'
