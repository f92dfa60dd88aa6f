-- ARGV: id, epoch, first index, records (JSON)... Returns the number committed now, or -1 when fenced.
local task = load_task(ARGV[1])
if not task or task.epoch ~= ARGV[2] or task.state ~= 'computing' then return -1 end
local first_index = tonumber(ARGV[3])
if first_index <= tonumber(task.committed) then append_tokens(task, first_index, 4, math.huge) end
return tonumber(task.committed)
