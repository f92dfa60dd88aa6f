-- ARGV: coordinator, its lease in ms, how many sessions it would take over, ids of its sessions...
-- Returns ms until some lease lapses or '', ids that are not the coordinator's (any more), ids taken over.
-- Sent again after a lost answer, those taken over then lapse once more.
local coordinator = ARGV[1]
local now = now_ms()
local lease_until = int(now + tonumber(ARGV[2]))
local lost, adopted = {}, {}
for i = 4, #ARGV do
  local held_by = redis.call('HGET', K.task .. ARGV[i], 'coordinator')
  if held_by == coordinator and redis.call('ZSCORE', K.sessions, ARGV[i]) then
    redis.call('ZADD', K.sessions, lease_until, ARGV[i])
  else
    lost[#lost + 1] = ARGV[i]
  end
end
for _, id in ipairs(redis.call('ZRANGE', K.sessions, '-inf', int(now), 'BYSCORE', 'LIMIT', 0, ARGV[3])) do
  local task = load_task(id)
  if task and (task.state == 'coordinating' or NEXT[task.state].reassign) then
    raise(task, 'epoch')  -- whoever held it writes no more
    save(task, task.state, 'adopt', 'coordinator', coordinator)
    redis.call('ZADD', K.sessions, lease_until, id)
    adopted[#adopted + 1] = id
  else
    redis.call('ZREM', K.sessions, id)
  end
end
local first = redis.call('ZRANGE', K.sessions, 0, 0, 'WITHSCORES')
return {first[2] and int(math.max(first[2] - now, 0)) or '', lost, adopted}
