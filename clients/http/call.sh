# What the files beside this one share: each is run by `sh clients/http/<area>.sh` with the address of a server and a key of the operator.
set -eu
: "${MOLTWIRE_URL:=http://127.0.0.1:6658}"
: "${MOLTWIRE_API_KEY:?is not set: it is the operator key, which the first start of the server printed}"

# call METHOD JSON: one method, by POST; ends the script when it fails. A method that is repeated with the same idempotency key has one effect.
call() {
  echo "$1" >&2
  curl -sS --fail-with-body "$MOLTWIRE_URL/moltwire.$1" -H "authorization: Bearer $MOLTWIRE_API_KEY" -H 'content-type: application/json' -d "$2"
  echo
}

# ask METHOD JSON: a method that changes nothing, by GET.
ask() {
  echo "$1" >&2
  curl -sS --fail-with-body --get "$MOLTWIRE_URL/moltwire.$1" -H "authorization: Bearer $MOLTWIRE_API_KEY" -d encoding=json -d connect=v1 --data-urlencode "message=$2"
  echo
}

# field NAME: the first text of this name in the JSON that comes in.
field() { grep -o "\"$1\":\"[^\"]*\"" | head -n 1 | cut -d '"' -f 4; }

# A name that nothing else has.
unique() { echo "$1-$(date +%s)-$$"; }

# An agent of the operator's organisation, for which the calls are made: by administrators the agent is named, an agent's own key needs no name.
new_agent() { call bus.v1.AgentService/RegisterAgent "{\"name\":\"$(unique "$1")\"}" | field agentId; }
