-- The error reply for the whole script, if the error text that redis.pcall returned concerns the
-- server or the user; such an error comes at the first write. Nil if it concerns the key.
local function server_error(text)
  -- The texts of errors that concern the server (read-only, out of memory, can't persist or
  -- replicate) or the user, with the error code to put before the text. Before Redis 7 the text of
  -- an error in a script has a prefix before its code. Before Redis 7.2 the error of a denied
  -- command has no code. The table is made here, since each call of a script would make it.
  local server_errors = {
    ['READONLY '] = '', ['OOM '] = '', ['MISCONF '] = '', ['NOREPLICAS '] = '', ['NOPERM '] = '',
    ['The user executing the script'] = 'NOPERM ', ['ACL failure in script'] = 'NOPERM ',
  }
  for sign, code in pairs(server_errors) do
    local from = string.find(text, sign, 1, true)
    if from then return redis.error_reply(code .. string.sub(text, from)) end
  end
end
