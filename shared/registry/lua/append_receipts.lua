-- ARGV: id, epoch, field, body (JSON). Returns ok, not_found or stale_epoch. What is at the field first stays.
local task = redis.call('HMGET', K.task .. ARGV[1], 'epoch', 'expires')
if not task[1] then return 'not_found' end
if task[1] ~= ARGV[2] then return 'stale_epoch' end
redis.call('HSETNX', K.receipts .. ARGV[1], ARGV[3], ARGV[4])
if task[2] and task[2] ~= '' then redis.call('PEXPIREAT', K.receipts .. ARGV[1], task[2]) end
return 'ok'
