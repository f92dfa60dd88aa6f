-- ARGV: node id, what was measured of it as JSON. Each change gets a number of its own, by which readers ask for more.
local last = redis.call('ZREVRANGE', K.profiles_changed, 0, 0, 'WITHSCORES')
redis.call('HSET', K.profiles, ARGV[1], ARGV[2])
redis.call('ZADD', K.profiles_changed, (tonumber(last[2]) or 0) + 1, ARGV[1])
