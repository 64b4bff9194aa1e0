-- permits: grants permits for batches that are merged or delivered, and notes what became of them.
-- The limits are those of a namespace, or those of each of several groups.
--
-- KEYS   for each limit: its permits (includes/permits.lua)
-- ARGV   1 caller: the flusher  2 ms within which a call begins  3 ms within which it is over
--        4 number of permits at the same time; 0 for any  5 units in a window; 0 for any
--        6 length of the window, ms  7 units that may begin at once  8 wake channel, or '' if the
--        callers do not wait for each other
--        then for each key its steps, carried out in this order, with one space between:
--        +ID:UNITS  grant a permit for a call of so many units
--        =ID:UNITS  its call was made, and had so many units (:UNITS may be left out for all)
--        -ID:UNITS  the same, and the call is over
--        ~ID        it is over, and no call was made
--        !          the caller waits no longer
-- Reply  for each key { number of permits that were granted, ms until the next one may be granted
--        (0: all were granted), 1 if it is for the number of permits that it waits, else 0 }. No
--        permit is granted after one that was not
--
-- A repeated call does nothing twice, and grants what was granted.

-- @include arguments
-- @include assert_type
-- @include clock
-- @include permits

local FIRST_STEPS = 9
local MOST_MS = 2^43
assert_arguments(#KEYS > 0 and #ARGV - FIRST_STEPS + 1 == #KEYS)
local caller, channel = ARGV[1], ARGV[8]
local rule = {
  begin_ms = whole_number(ARGV[2]), hold_ms = whole_number(ARGV[3]),
  concurrency = whole_number(ARGV[4]), limit = whole_number(ARGV[5]),
  per = whole_number(ARGV[6]), burst = whole_number(ARGV[7]),
}
assert_arguments(rule.per > 0 and rule.per < MOST_MS and rule.begin_ms > 0
  and rule.begin_ms <= rule.hold_ms and rule.hold_ms < MOST_MS)

local function parse_steps(text)
  local steps = {}
  for word in string.gmatch(text, '%S+') do
    local kind, id, units = string.match(word, '^([+=~-])([%w.]+):?(%d*)$')
    if word == '!' then kind, id, units = '!', '', '' end
    assert_arguments(kind and (kind ~= '+' or units ~= ''))
    steps[#steps + 1] = { kind, id, units ~= '' and whole_number(units) or nil }
  end
  return steps
end

local steps_of = {}
for i = 1, #KEYS do steps_of[i] = parse_steps(ARGV[FIRST_STEPS + i - 1]) end
assert_type('HLEN', KEYS)
local now = clock()

local function carry_out(l, steps)
  local granted, count, units, at, by_place = 0, 0, 0, nil, nil
  for _, step in ipairs(steps) do
    local kind, id = step[1], step[2]
    if kind == '!' then
      permits.wait(l, 0, 0, 0)
    elseif kind ~= '+' then
      permits.note(l, kind, id, step[3])
    elseif at then
      count, units = count + 1, units + step[3]
    else
      at, by_place = permits.take(l, id, step[3])
      if at then count, units = 1, step[3] else granted = granted + 1 end
    end
  end
  if channel ~= '' and granted + count > 0 then permits.wait(l, granted, count, units, at) end
  return { granted, at and math.ceil(at - now) or 0, by_place or 0 }
end

local reply, limits, wakes = {}, {}, false
for i, key in ipairs(KEYS) do
  limits[i] = permits.read(key, rule, caller, now)
  reply[i] = carry_out(limits[i], steps_of[i])
  wakes = wakes or permits.wakes(limits[i])
end
for _, l in ipairs(limits) do permits.write(l) end
if wakes and channel ~= '' then redis.call('PUBLISH', channel, 'permits') end
return reply
