-- The scores of `flushers`. The whole part is the time (ms) at which a flusher counts as dead. The
-- fraction holds how long it lives without joining anew: E/64 for less than 2^E ms. A flusher that
-- seems to live for longer counts as dead too: the clock was set back since it joined.
local FRACTIONS = 64  -- a double has room for them beside a time in ms

local function live_score(now, lifetime_ms)
  local _, exponent = math.frexp(lifetime_ms)
  return string.format('%.6f', now + lifetime_ms + exponent / FRACTIONS)
end

-- The ms until a flusher counts as dead, or 0. `longest`: for scores without a fraction.
local function life_left(score, longest, now)
  local dies = math.floor(score)
  local exponent = (score - dies) * FRACTIONS
  local left = dies - now
  if left <= 0 or left > (exponent > 0 and 2 ^ exponent or longest) then return 0 end
  return left
end
