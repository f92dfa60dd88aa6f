-- ARGV: id, epoch, state of the tail audit, '1' to take the next epoch. Returns ok and the epoch, or why not.
local task = load_task(ARGV[1])
if not task then return {'not_found'} end
if task.state ~= 'completed' then return {'invalid_transition', task.state} end
if task.epoch ~= ARGV[2] then return {'stale_epoch', task.epoch} end
local key = K.task .. task.id
if ARGV[4] == '1' then
  raise(task, 'epoch')
  redis.call('HSET', key, 'epoch', task.epoch, 'tail_audit', ARGV[3])
elseif ARGV[3] == 'pending' then
  redis.call('HSETNX', key, 'tail_audit', ARGV[3])
else
  redis.call('HSET', key, 'tail_audit', ARGV[3])
end
return {'ok', task.epoch}
