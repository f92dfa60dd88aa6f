-- ARGV: id, attempt or '' (a reassignment), plan id. Returns ok, record, prompt, tokens, or why not.
-- Sent again it takes one more epoch: only the last answer counts.
local id, attempt, plan_id = ARGV[1], ARGV[2], ARGV[3]
local task = load_task(id)
if not task then return {'not_found'} end
if attempt ~= '' and attempt ~= task.attempt then return {'stale_attempt', task.attempt} end
local from = task.state
local to = from
if attempt == '' then to = NEXT[from].reassign or from end
if to ~= 'coordinating' then return {'invalid_transition', from} end

raise(task, 'epoch')
save(task, to, 'open_session', 'plan_id', plan_id)
if to ~= from then tell_state(task, from, to) end
return {'ok', redis.call('HGETALL', K.task .. id), redis.call('GET', K.request .. id),
        redis.call('LRANGE', K.tokens .. id, 0, -1)}
