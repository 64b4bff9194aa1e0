-- The text of a whole number, for a command. Redis would make it with 17 digits, which takes longer
-- than many a command. The same places and counts recur in a call.
local number_texts = {}
local function number_text(number)
  local text = number_texts[number]
  if not text then
    text = string.format('%.0f', number)
    number_texts[number] = text
  end
  return text
end
