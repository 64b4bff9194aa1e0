-- read_policies: returns the policies of a namespace, unless the caller knows them already.
--
-- KEYS   1 meta  2 policies
-- ARGV   1 the version that the caller knows, '' for none
-- Reply  { version }; if it is another one, then also pattern, policy, pattern, policy, ... The
--        version is '' if the namespace has none: it never had a policy, or its data were removed.

-- @include arguments

local meta, policies = KEYS[1], KEYS[2]
assert_arguments(#KEYS == 2 and #ARGV == 1)

local version = redis.call('HMGET', meta, 'policies')[1] or ''
if version == ARGV[1] then return { version } end
local reply = redis.call('HGETALL', policies)
table.insert(reply, 1, version)
return reply
