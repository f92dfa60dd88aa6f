-- ARGV: id, epoch, window, stage or ''. Returns ok, or why not. An epoch ends with its first dispute: sent again it is a no-op.
local task = load_task(ARGV[1])
if not task then return {'not_found'} end
if task.epoch ~= ARGV[2] then return {'stale_epoch', task.epoch} end
local key = K.task .. task.id
if redis.call('HGET', key, 'disputed_epoch') ~= ARGV[2] then
  redis.call('HSET', key, 'disputed_epoch', ARGV[2])
  redis.call('HINCRBY', key, 'disputes', 1)
  local stage = ARGV[4] ~= '' and ARGV[4] or 'null'
  tell(task, 'dispute', '{"window":' .. ARGV[3] .. ',"stage":' .. stage .. '}')
end
return {'ok'}
