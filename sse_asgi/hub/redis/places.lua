-- The places that nodes hold. Redis runs this script atomically.
--
-- KEYS     for each kind of place, those that are held, with the time in milliseconds until which
--          they are: sorted sets.
--
-- ARGV     operation; for how many milliseconds places are held;
--          take: how many places there are, and the one to take;
--          renew: for each key the places to renew, with a space after each;
--          give: the place to give back.

local operation, lease = ARGV[1], tonumber(ARGV[2])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function hold(key, place)
  redis.call('ZADD', key, string.format('%.0f', now + lease), place)
  redis.call('PEXPIRE', key, lease)
end

if operation == 'give' then
  return {redis.call('ZREM', KEYS[1], ARGV[3])}
end

if operation == 'take' then
  local most, place = tonumber(ARGV[3]), ARGV[4]
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
  -- It may have been taken by an attempt whose answer was lost.
  if redis.call('ZCARD', KEYS[1]) >= most and not redis.call('ZSCORE', KEYS[1], place) then
    return {0}
  end
  hold(KEYS[1], place)
  return {1}
end

for index, key in ipairs(KEYS) do
  for place in string.gmatch(ARGV[index + 2], '(%S+) ') do
    hold(key, place)
  end
end
return {1}
