-- ARGV: id, epoch, finish reason, tokens of the answer, first index, records (JSON)... Returns ok, fenced or gap.
local task = load_task(ARGV[1])
if not task then return {'not_found'} end
local last = 'finish:e' .. ARGV[2]
if task.last == last then return {'ok'} end
if task.epoch ~= ARGV[2] or task.state ~= 'computing' then return {'fenced'} end
local num_tokens, first_index, num_records = tonumber(ARGV[4]), tonumber(ARGV[5]), #ARGV - 5
local committed = tonumber(task.committed)
local reached = committed
if first_index <= committed then reached = math.max(committed, first_index + num_records) end
if reached < num_tokens then return {'gap', int(reached)} end

if first_index <= committed then append_tokens(task, first_index, 6, num_tokens) end
if tonumber(task.committed) > num_tokens then
  redis.call('LTRIM', K.tokens .. task.id, 0, num_tokens - 1)
  if num_tokens == 0 then redis.call('DEL', K.tokens .. task.id) end
  task.committed = int(num_tokens)
end
local to = NEXT[task.state].computation_complete
if task.hold == '1' then  -- its tail audit ends it
  save(task, to, last, 'finish_reason', ARGV[3], 'committed', task.committed)
  tell_state(task, task.state, to)
else
  end_task(task, NEXT[NEXT[to].aggregation_complete].commit_complete, last, now_ms(), {finish_reason = ARGV[3]})
end
return {'ok'}
