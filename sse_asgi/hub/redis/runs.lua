-- Return the topics of a shard whose runners have not renewed their leases.
--
-- KEYS[1]  the topics that have a runner: see topic.lua.
-- ARGV     the maximum number of topics.

local clock = redis.call('TIME')
local now = string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000))
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
