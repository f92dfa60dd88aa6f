-- ARGV: id, attempt or '' (a reassignment), plan id, coordinator, its lease in ms. Returns ok, record, prompt, tokens,
-- or why not. Sent again it takes one more epoch: only the last answer counts.
local id, attempt, plan_id, coordinator = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local task = load_task(id)
if not task then return {'not_found'} end
if attempt ~= '' and attempt ~= task.attempt then return {'stale_attempt', task.attempt} end
local from = task.state
local to = from
if attempt == '' then to = NEXT[from].reassign or from end
if to ~= 'coordinating' then return {'invalid_transition', from} end
if attempt == '' and coordinator ~= task.coordinator then return {'stale_epoch', task.epoch} end

raise(task, 'epoch')
save(task, to, 'open_session', 'plan_id', plan_id, 'coordinator', coordinator)
redis.call('ZADD', K.sessions, int(now_ms() + tonumber(ARGV[5])), id)
if to ~= from then tell_state(task, from, to) end
return {'ok', redis.call('HGETALL', K.task .. id), redis.call('GET', K.request .. id),
        redis.call('LRANGE', K.tokens .. id, 0, -1)}
