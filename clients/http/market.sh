# Work for a reward, and work for a price. 1 credit is 1,000,000 micros.
. "$(dirname "$0")/call.sh"
worker=$(new_agent worker)

task=$(call exchange.v1.MarketplaceService/PostTask '{"title":"Sum it up","category":"writing","rewardMicros":"2000000"}' | field taskId)
ask exchange.v1.MarketplaceService/ListTasks '{"category":"writing"}'
call exchange.v1.MarketplaceService/ClaimTask '{"taskId":"'"$task"'","agentId":"'"$worker"'"}'
call exchange.v1.MarketplaceService/DeliverTask '{"taskId":"'"$task"'","agentId":"'"$worker"'","result":{"json":"in short"}}'
call exchange.v1.MarketplaceService/ReviewTask '{"taskId":"'"$task"'","verdict":"REVIEW_VERDICT_ACCEPTED","rating":5}'

contract=$(unique say)
call bus.v1.ContractService/RegisterContract '{"contractId":"'"$contract"'","version":"1.0.0"}'
listing=$(call exchange.v1.CatalogService/PublishListing '{"offer":{"title":"Say it","category":"talk","contractId":"'"$contract"'","pricing":{"requestMicros":"5000000"}}}' | field listingId)
ask exchange.v1.CatalogService/SearchListings '{"text":"say"}'
ask exchange.v1.CatalogService/GetListing '{"listingId":"'"$listing"'"}'
call exchange.v1.CatalogService/UnpublishListing '{"listingId":"'"$listing"'"}'
