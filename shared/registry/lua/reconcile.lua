-- ARGV: limit, max attempts, owner, lease in ms, cursor of the sweep, then group, why its tasks wait...
-- Returns the next cursor, ms until some lease lapses or '', and the ids: requeued, adopted, expired, detached, exhausted.
local limit, max_attempts, owner = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local now = now_ms()
local waiting = {}
for i = 6, #ARGV, 2 do waiting[ARGV[i]] = ARGV[i + 1] end
local requeued, adopted, expired, detached, exhausted = {}, {}, {}, {}, {}

local function due(set)
  return redis.call('ZRANGE', set, '-inf', int(now), 'BYSCORE', 'LIMIT', 0, limit)
end

local function fail(task, code, message)
  raise(task, 'epoch')
  end_task(task, 'failed', 'fail', now, {error_code = code, error = message})
end

for _, id in ipairs(due(K.deadlines)) do
  local task = load_task(id)
  if not task or TERMINAL[task.state] then
    redis.call('ZREM', K.deadlines, id)
  else
    local message = 'the deadline passed while the task was ' .. task.state
    if task.state == 'queued' and waiting[task.group] then message = message .. ': ' .. waiting[task.group] end
    fail(task, 'deadline_exceeded', message)
    expired[#expired + 1] = id
  end
end

for _, id in ipairs(due(K.attached)) do
  local task = load_task(id)
  if task and NEXT[task.state].cancel then
    raise(task, 'epoch')
    end_task(task, NEXT[task.state].cancel, 'cancel', now, {})
    detached[#detached + 1] = id
  else
    redis.call('ZREM', K.attached, id)
  end
end

for _, id in ipairs(due(K.leases)) do
  local task = load_task(id)
  if not task or TERMINAL[task.state] or task.state == 'queued' then
    redis.call('ZREM', K.leases, id)
  elseif NEXT[task.state].requeue and task.coordinator == '' then
    local lapses = tonumber(task.lapses) + 1
    if lapses >= max_attempts then
      fail(task, 'attempts_exhausted', 'a scheduler was lost ' .. int(lapses) .. ' times while starting the task')
      exhausted[#exhausted + 1] = id
    else
      redis.call('HSET', K.task .. id, 'lapses', int(lapses))
      requeue(task, 'requeue')
      requeued[#requeued + 1] = id
    end
  else
    raise(task, 'attempt')
    save(task, task.state, task.last, 'lease_owner', owner)
    redis.call('ZADD', K.leases, int(now + tonumber(ARGV[4])), id)
    adopted[#adopted + 1] = id
  end
end

-- The sweep walks over all unfinished tasks, some at each call, for entries that were lost.
local swept = redis.call('ZSCAN', K.deadlines, ARGV[5], 'COUNT', limit)
for i = 1, #swept[2], 2 do
  local id = swept[2][i]
  local task = load_task(id)
  if not task then
    redis.call('ZREM', K.deadlines, id)
  elseif task.state == 'queued' then
    if not (redis.call('ZSCORE', K.queue .. task.group, id) and redis.call('ZSCORE', K.queued, id)) then
      enter_queue(task)
      requeued[#requeued + 1] = id
    end
  elseif not TERMINAL[task.state] then
    local has_session = task.coordinator ~= '' or NEXT[task.state].reassign
    if not redis.call('ZSCORE', K.leases, id) then
      redis.call('ZADD', K.leases, int(now), id)  -- the next call treats it as lapsed
    end
    if has_session and not redis.call('ZSCORE', K.sessions, id) then
      redis.call('ZADD', K.sessions, int(now), id)  -- so does the next coordinator
    end
  end
end

for _, entry in ipairs(due(K.expiring)) do
  local id, of = string.match(entry, '^(%S+) (.*)$')
  redis.call('ZREM', K.index, id)
  redis.call('ZREM', K.index_of .. of, id)
  redis.call('ZREM', K.expiring, entry)
end

if #requeued > 0 then nudge() end
local first = redis.call('ZRANGE', K.leases, 0, 0, 'WITHSCORES')
return {swept[1], first[2] and int(math.max(first[2] - now, 0)) or '', requeued, adopted, expired, detached, exhausted}
