-- ARGV: id, epoch, state of the tail audit, '1' to take the next epoch, error code, error.
-- Returns ok and the epoch, or why not. A held task waits in Aggregating for the outcome, which ends it.
local task = load_task(ARGV[1])
if not task then return {'not_found'} end
local last = 'tail_' .. ARGV[3] .. ':e' .. ARGV[2]
if task.last == last then return {'ok', task.epoch} end
local is_held = task.hold == '1' and task.state == 'aggregating'
if task.state ~= 'completed' and not is_held then return {'invalid_transition', task.state} end
if task.epoch ~= ARGV[2] then return {'stale_epoch', task.epoch} end
local key = K.task .. task.id
if ARGV[4] == '1' then
  raise(task, 'epoch')
  redis.call('HSET', key, 'epoch', task.epoch, 'tail_audit', ARGV[3])
elseif ARGV[3] == 'pending' then
  redis.call('HSETNX', key, 'tail_audit', ARGV[3])
else
  redis.call('HSET', key, 'tail_audit', ARGV[3])
  if is_held and ARGV[3] == 'passed' then
    for first = 0, tonumber(task.committed) - 1, 100 do  -- entries of a bounded size
      tell_tokens(task, first, redis.call('LRANGE', K.tokens .. task.id, first, first + 99))
    end
    local to = NEXT[NEXT[task.state].aggregation_complete].commit_complete
    end_task(task, to, last, now_ms(), {finish_reason = redis.call('HGET', key, 'finish_reason')})
  elseif is_held then
    end_task(task, NEXT[task.state].fail, last, now_ms(), {error_code = ARGV[5], error = ARGV[6]})
  end
end
return {'ok', task.epoch}
