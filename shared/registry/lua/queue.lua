-- Returns now, depth, running, submission time of the oldest or '', then rank, count...
local depth = redis.call('ZCARD', K.queued)
local oldest = redis.call('ZRANGE', K.queued, 0, 0, 'WITHSCORES')
local per_rank = {}
for _, group in ipairs(redis.call('SMEMBERS', K.groups)) do
  local queue = K.queue .. group
  local place, size = 0, redis.call('ZCARD', queue)
  while place < size do  -- one step per rank that is there
    local score = tonumber(redis.call('ZRANGE', queue, place, place, 'WITHSCORES')[2])
    local rank = math.ceil(-score / 1e13)
    local count = redis.call('ZCOUNT', queue, int(-rank * 1e13), '(' .. int(-(rank - 1) * 1e13))
    per_rank[rank] = (per_rank[rank] or 0) + count
    place = place + count
  end
end
local answer = {int(now_ms()), depth, math.max(redis.call('ZCARD', K.deadlines) - depth, 0), oldest[2] or ''}
for rank, count in pairs(per_rank) do
  answer[#answer + 1] = int(rank)
  answer[#answer + 1] = count
end
return answer
