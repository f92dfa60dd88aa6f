-- ARGV: node id, its standing as JSON, 'keep' or 'forget'. What is kept and is stronger stays as it is: whoever wrote
-- this one had not heard of that.
local function strength(json)
  local standing = cjson.decode(json)
  if standing.is_evicted then return math.huge end
  if standing.until_s == cjson.null then return 1e300 end  -- until an operator ends it
  return standing.until_s
end

local kept = redis.call('HGET', K.standings, ARGV[1])
if kept and strength(kept) > strength(ARGV[2]) then return end
if ARGV[3] == 'forget' then
  redis.call('HDEL', K.standings, ARGV[1])
elseif not kept or strength(kept) < strength(ARGV[2]) then
  redis.call('HSET', K.standings, ARGV[1], ARGV[2])
end
