-- Comes before every script, after the generated tables K (keys), NEXT (state table) and TERMINAL.
-- Redis does not roll a failed script back: each script validates everything first and writes last.
-- Times are the server's, in ms. Numbers become strings by int(): Lua's own way loses digits beyond 14.

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function int(number)
  return string.format('%.0f', number)
end

local FIELDS = {'state', 'attempt', 'epoch', 'lease_owner', 'group', 'rank', 'sequence', 'owner', 'created', 'started',
                'deadline', 'committed', 'result_ttl', 'lapses', 'last', 'coordinator', 'hold'}

-- The record without what only readers want; nil when there is none.
local function load_task(id)
  local values = redis.call('HMGET', K.task .. id, unpack(FIELDS))
  if not values[1] then return nil end
  local task = {id = id}
  for i, name in ipairs(FIELDS) do task[name] = values[i] or '' end
  return task
end

-- `last` names the step that led to the present state: the same step again is a no-op.
local function save(task, state, last, ...)
  redis.call('HSET', K.task .. task.id, 'state', state, 'attempt', task.attempt, 'epoch', task.epoch, 'last', last, ...)
end

local function raise(task, fence)
  task[fence] = int(tonumber(task[fence]) + 1)
end

-- One waiting nudge is enough: whoever takes it looks at the whole queue.
local function nudge()
  if redis.call('LLEN', K.wake) == 0 then redis.call('RPUSH', K.wake, '1') end
end

local function enter_queue(task)
  local score = int(-tonumber(task.rank) * 1e13 + tonumber(task.sequence))
  redis.call('ZADD', K.queue .. task.group, score, task.id)
  redis.call('SADD', K.groups, task.group)
  redis.call('ZADD', K.queued, task.created, task.id)
end

local function leave_queue(id, group)
  redis.call('ZREM', K.queue .. group, id)
  redis.call('ZREM', K.queued, id)
  if redis.call('EXISTS', K.queue .. group) == 0 then redis.call('SREM', K.groups, group) end
end

local function tell(task, kind, data)
  redis.call('XADD', K.events .. task.id, '*', 'kind', kind, 'data', data)
end

local function tell_state(task, from, to)
  tell(task, 'state', string.format('{"from":"%s","to":"%s","attempt":%s,"epoch":%s}', from, to, task.attempt, task.epoch))
end

-- What goes to the record and the stream when a task ends; frees its place and starts the time to live.
local function end_task(task, to, last, now, outcome)
  local gone = now + tonumber(task.result_ttl) * 1000
  local record_gone = gone + 7 * 86400000
  local reason, code = outcome.finish_reason or '', outcome.error_code or ''
  save(task, to, last, 'finished', int(now), 'expires', int(gone), 'finish_reason', reason, 'error_code', code,
       'error', outcome.error or '', 'lease_owner', '', 'committed', task.committed)
  if task.state == 'queued' then leave_queue(task.id, task.group) end
  for _, set in ipairs({K.leases, K.sessions, K.deadlines, K.attached, K.unfinished}) do redis.call('ZREM', set, task.id) end
  redis.call('SREM', K.open .. task.owner, task.id)
  tell(task, 'end', cjson.encode({
    state = to,
    finish_reason = reason ~= '' and reason or cjson.null,
    error_code = code ~= '' and code or cjson.null,
    error = outcome.error or '',
    num_tokens = tonumber(task.committed),
  }))
  for _, prefix in ipairs({K.request, K.tokens, K.events, K.receipts}) do redis.call('PEXPIREAT', prefix .. task.id, int(gone)) end
  redis.call('PEXPIREAT', K.task .. task.id, int(record_gone))
  redis.call('ZADD', K.expiring, int(record_gone), task.id .. ' ' .. task.owner)
  nudge()
end

local function tell_tokens(task, first_index, encoded)
  tell(task, 'commit', '{"first_index":' .. int(first_index) .. ',"records":[' .. table.concat(encoded, ',') .. ']}')
end

local function requeue(task, last)
  local from = task.state
  if task.epoch ~= '0' then raise(task, 'epoch') end  -- the session given up must not write any more
  save(task, 'queued', last, 'lease_owner', '', 'plan_id', '', 'coordinator', '')
  redis.call('ZREM', K.leases, task.id)
  redis.call('ZREM', K.sessions, task.id)
  enter_queue(task)
  tell_state(task, from, 'queued')
end

-- Appends records (JSON, ARGV from index `first_arg` on) that stand at `first_index`, up to `limit` tokens in all.
-- Those of a held task are told when it is released.
local function append_tokens(task, first_index, first_arg, limit)
  local have = tonumber(task.committed)
  local fresh = {}
  for i = first_arg + have - first_index, #ARGV do
    if have + #fresh >= limit then break end
    fresh[#fresh + 1] = ARGV[i]
    redis.call('RPUSH', K.tokens .. task.id, ARGV[i])
  end
  if #fresh == 0 then return end
  task.committed = int(have + #fresh)
  redis.call('HSET', K.task .. task.id, 'committed', task.committed)
  if task.hold ~= '1' then tell_tokens(task, have, fresh) end
end
