-- ARGV: id. Returns ok, the state now and whether this call cancelled.
local task = load_task(ARGV[1])
if not task then return {'not_found'} end
local to = NEXT[task.state].cancel
if not to then return {'ok', task.state, 0} end
raise(task, 'epoch')
end_task(task, to, 'cancel', now_ms(), {})
return {'ok', to, 1}
