-- ARGV: owner, lease in ms, ids... Returns the ids that are not the owner's (any more).
local lease_until = int(now_ms() + tonumber(ARGV[2]))
local lost = {}
for i = 3, #ARGV do
  local held = redis.call('HGET', K.task .. ARGV[i], 'lease_owner')
  if held == ARGV[1] then
    redis.call('ZADD', K.leases, lease_until, ARGV[i])
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
