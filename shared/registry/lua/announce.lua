-- ARGV: who is here (JSON), its lease in ms; 0: it is gone. Returns all that are here.
local now = now_ms()
redis.call('ZREMRANGEBYSCORE', K.coordinators, '-inf', int(now))
if tonumber(ARGV[2]) > 0 then
  redis.call('ZADD', K.coordinators, int(now + tonumber(ARGV[2])), ARGV[1])
else
  redis.call('ZREM', K.coordinators, ARGV[1])
end
return redis.call('ZRANGE', K.coordinators, 0, -1)
