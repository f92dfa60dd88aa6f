-- ARGV: id, event, attempt or '', epoch or '', plan id or '', error code, error. Returns ok and the state, or why not.
local event, attempt, epoch, plan_id = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local task = load_task(ARGV[1])
if not task then return {'not_found'} end
local last = event .. ':a' .. attempt .. ':e' .. epoch
if task.last == last then return {'ok', task.state} end
if attempt ~= '' and attempt ~= task.attempt then return {'stale_attempt', task.attempt} end
if epoch ~= '' and epoch ~= task.epoch then return {'stale_epoch', task.epoch} end
local from = task.state
local to = NEXT[from][event]
if not to then return {'invalid_transition', from} end

local now = now_ms()
if TERMINAL[to] then
  end_task(task, to, last, now, {error_code = ARGV[6], error = ARGV[7]})
elseif to == 'queued' then
  requeue(task, last)
else
  if from == 'queued' then leave_queue(task.id, task.group) end
  save(task, to, last)
  if plan_id ~= '' then redis.call('HSET', K.task .. task.id, 'plan_id', plan_id) end
  if to == 'computing' and task.started == '' then redis.call('HSET', K.task .. task.id, 'started', int(now)) end
  tell_state(task, from, to)
end
return {'ok', to}
