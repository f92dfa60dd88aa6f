-- ARGV: id, owner, idempotency key or '', payload hash, attachment in ms or 0, max queued, max unfinished of the owner,
--       rank, group, deadline in ms from now, result ttl in s, task without prompt (JSON), prompt ids (binary), their number,
--       1 to hold its answer back until its tail audit has passed, else 0
-- Returns ok, id, state, whether created, queued tasks; or why not.
local id, owner, idempotency, payload_hash, attach_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local group = ARGV[9]

local known = redis.call('HGET', K.task .. id, 'state')
if known then return {'ok', id, known, 1, redis.call('ZCARD', K.queued)} end  -- this very call, sent again

if idempotency ~= '' then
  local kept = redis.call('GET', idempotency)
  if kept then
    local earlier, hash = string.match(kept, '^(%S+) (.*)$')
    if hash ~= payload_hash then return {'idempotency_key_reused'} end
    local state = redis.call('HGET', K.task .. earlier, 'state')
    if state then return {'ok', earlier, state, 0, redis.call('ZCARD', K.queued)} end
  end
end
local queued = redis.call('ZCARD', K.queued)
if queued >= tonumber(ARGV[6]) then return {'queue_full'} end
if redis.call('SCARD', K.open .. owner) >= tonumber(ARGV[7]) then return {'quota_exceeded'} end

local now = now_ms()
local deadline = int(now + tonumber(ARGV[10]))
local task = {id = id, attempt = '0', epoch = '0', rank = ARGV[8], group = group, created = int(now)}
task.sequence = int(redis.call('INCR', K.sequence))
save(task, 'queued', 'submit', 'group', group, 'rank', task.rank, 'sequence', task.sequence, 'owner', owner,
     'created', task.created, 'deadline', deadline, 'result_ttl', ARGV[11], 'committed', '0', 'lapses', '0',
     'spec', ARGV[12], 'num_prompt', ARGV[14], 'hold', ARGV[15])
redis.call('SET', K.request .. id, ARGV[13])
redis.call('ZADD', K.deadlines, deadline, id)
redis.call('SADD', K.open .. owner, id)
redis.call('ZADD', K.index, 0, id)
redis.call('ZADD', K.unfinished, 0, id)
redis.call('ZADD', K.index_of .. owner, 0, id)
if attach_ms > 0 then redis.call('ZADD', K.attached, int(now + attach_ms), id) end
if idempotency ~= '' then redis.call('SET', idempotency, id .. ' ' .. payload_hash, 'EX', 86400) end
enter_queue(task)
tell_state(task, 'submitted', 'queued')
nudge()
return {'ok', id, 'queued', 1, queued + 1}
