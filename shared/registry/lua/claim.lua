-- ARGV: group, count, owner, lease in ms, plan id or ''. Returns id, attempt, id, attempt...
-- Sent again after a lost answer it claims other tasks; the first ones come back when their lease lapses.
local group, count, owner, plan_id = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[5]
local now = now_ms()
local lease_until = int(now + tonumber(ARGV[4]))
local claimed = {}
for _, id in ipairs(redis.call('ZRANGE', K.queue .. group, 0, 99)) do
  if #claimed >= 2 * count then break end
  local task = load_task(id)
  if not task or task.state ~= 'queued' then
    leave_queue(id, group)  -- a hint that is not true any more
  elseif tonumber(task.deadline) > now then
    raise(task, 'attempt')
    leave_queue(id, group)
    redis.call('ZADD', K.leases, lease_until, id)
    local state = NEXT.queued.start_partitioning
    tell_state(task, 'queued', state)
    if plan_id ~= '' then
      local after = NEXT[state].partition_complete
      tell_state(task, state, after)
      state = after
    end
    save(task, state, 'claim', 'lease_owner', owner, 'plan_id', plan_id)
    claimed[#claimed + 1] = id
    claimed[#claimed + 1] = task.attempt
  end
end
return claimed
