# Small work on text.
. "$(dirname "$0")/call.sh"

ask text.v1.TextService/Process '{"operation":"TEXT_OPERATION_EXTRACT_URLS","text":"see https://example.com"}'
ask text.v1.TextService/Process '{"operation":"TEXT_OPERATION_HASH_SHA256","text":"hello world"}'
