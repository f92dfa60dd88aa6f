-- ARGV: node id, the last change of it that the caller knows of, what was measured of it as JSON. Each change gets a
-- number of its own, by which readers ask for more. 0: nothing is kept, for the caller does not know of the last change.
local last = redis.call('ZSCORE', K.profiles_changed, ARGV[1])
if last and tonumber(last) > tonumber(ARGV[2]) then
  return 0
end
local number = redis.call('INCR', K.profile_changes)
redis.call('HSET', K.profiles, ARGV[1], ARGV[3])
redis.call('ZADD', K.profiles_changed, number, ARGV[1])
return number
