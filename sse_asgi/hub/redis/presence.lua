-- Who is present in the topics of one shard, on which nodes. Redis runs this script atomically.
--
-- KEYS[1]  the nodes, with the time in milliseconds until which each is taken to live: a sorted
--          set. A node that is being removed has -1. The member 'born' has the time at which the
--          set was made. Only the clock of Redis is used.
-- KEYS[2]  who is present: <topic>|<info>|<node>, a sorted set in which all scores are 0.
-- KEYS[3]  the same by nodes: <node>|<topic>|<info>. With an empty info it stands for a count.
-- KEYS[4]  how many subscribers a topic has on a node: a hash with the fields <topic>|<node>.
-- KEYS[5]  who comes and goes: a stream. Its ids are <generation>-<offset>. Offsets have no holes.
--          (For broadcast and time there is one key: the stream of messages.)
--
-- The | is the character 31, which no topic has, and no JSON in ASCII. All keys expire when no node
-- has called for some time.
--
-- ARGV     operation, milliseconds after which a silent node is taken to be dead, node;
--          the arguments of the operation.

local nodes, members, index, counts, changes = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local operation, lease, node = ARGV[1], tonumber(ARGV[2]), ARGV[3]

-- How many entries of dead nodes are removed in one call, and how many changes are kept.
local REMOVED, CHANGES, MESSAGES = 1000, 1000, 1000

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- Return the bounds of all members of a sorted set that begin with a text and a |.
local function with(text)
  return '[' .. text .. '\31', '(' .. text .. '\32'
end

local generation, offset
local function announce(kind, topic, info)
  if not generation then
    local newest = redis.call('XREVRANGE', changes, '+', '-', 'COUNT', 1)[1]
    if newest then
      generation, offset = string.match(newest[1], '^(%d+)-(%d+)$')
    else
      generation, offset = string.format('%.0f', clock[1] * 1000000 + clock[2]), 0
    end
  end
  offset = offset + 1
  redis.call('XADD', changes, 'MAXLEN', CHANGES, string.format('%s-%.0f', generation, offset),
    'kind', kind, 'topic', topic, 'info', info)
end

local function is_present(topic, info)
  local first, last = with(topic .. '\31' .. info)
  return redis.call('ZRANGEBYLEX', members, first, last, 'LIMIT', 0, 1)[1]
end

local function join(topic, info)
  local comes = not is_present(topic, info)
  redis.call('ZADD', members, 0, topic .. '\31' .. info .. '\31' .. node)
  redis.call('ZADD', index, 0, node .. '\31' .. topic .. '\31' .. info)
  if comes then
    announce('join', topic, info)
  end
end

local function leave(name, topic, info)
  redis.call('ZREM', index, name .. '\31' .. topic .. '\31' .. info)
  if redis.call('ZREM', members, topic .. '\31' .. info .. '\31' .. name) == 1
    and not is_present(topic, info)
  then
    announce('leave', topic, info)
  end
end

local function count(name, topic, number)
  local entry, field = name .. '\31' .. topic .. '\31', topic .. '\31' .. name
  if number == '0' then
    redis.call('ZREM', index, entry)
    redis.call('HDEL', counts, field)
  else
    redis.call('ZADD', index, 0, entry)
    redis.call('HSET', counts, field, number)
  end
end

-- Remove up to so many entries of a dead node, and return how many more may be removed.
local function remove(name, room)
  redis.call('ZADD', nodes, -1, name)
  local first, last = with(name)
  local entries = redis.call('ZRANGEBYLEX', index, first, last, 'LIMIT', 0, room)
  for _, entry in ipairs(entries) do
    local topic, info = string.match(entry, '^[^\31]*\31([^\31]*)\31(.*)$')
    if info == '' then
      count(name, topic, '0')
    else
      leave(name, topic, info)
    end
  end
  if #entries < room then
    redis.call('ZREM', nodes, name)
  end
  return room - #entries
end

-- Look at the other nodes, and return whether there is more to remove.
local function review(is_late)
  local room = REMOVED
  local found = redis.call('ZRANGE', nodes, 0, -1, 'WITHSCORES')
  for i = 1, #found, 2 do
    local name, till = found[i], tonumber(found[i + 1])
    if name == 'born' then
      if till > now then  -- the clock was put back
        redis.call('ZADD', nodes, now, name)
      end
    elseif till > now + lease then  -- the clock was put back
      redis.call('ZADD', nodes, now + lease, name)
    elseif name ~= node and till <= now then
      if is_late and till >= 0 then
        -- The caller has been away as long: perhaps Redis was, or its clock was put forward.
        redis.call('ZADD', nodes, now + lease, name)
      elseif room > 0 then
        room = remove(name, room)
      end
    end
  end
  return room <= 0
end

-- Let the keys expire some time after the last node is taken to be dead.
local function expire()
  local last = redis.call('ZREVRANGE', nodes, 0, 0, 'WITHSCORES')
  for _, key in ipairs(KEYS) do
    redis.call('PEXPIRE', key, string.format('%.0f', math.max(last[2] - now, 0) + lease))
  end
end

-- Renew the time of a node, and note its changes: a kind, a topic, and an info or a number, each.
-- Return whether the node is known, and whether there is more to do at once.
local function sync(is_new, is_leaving)
  local till = tonumber(redis.call('ZSCORE', nodes, node) or -1)
  if is_new then
    if redis.call('EXISTS', nodes) == 0 then
      redis.call('DEL', members, index, counts)
      redis.call('ZADD', nodes, now, 'born')
    end
  elseif till < 0 then
    return {0, 0}
  end
  redis.call('ZADD', nodes, now + lease, node)
  for i = 6, #ARGV, 3 do
    local kind, topic, value = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    if kind == 'join' then
      join(topic, value)
    elseif kind == 'leave' then
      leave(node, topic, value)
    else
      count(node, topic, value)
    end
  end
  local more = not is_new and review(till <= now)
  if is_leaving then
    redis.call('ZREM', nodes, node)
    if redis.call('ZCARD', nodes) == 1 then  -- 'born'
      redis.call('DEL', unpack(KEYS))
      return {1, 0}
    end
  end
  expire()
  return {1, more and 1 or 0}
end

-- Return how many subscribers a topic has, and the nodes that live: both without one node.
local function total(topic, without)
  local subscribers, lives = 0, {}
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', nodes, now + 1, '+inf')) do
    if name ~= without then
      lives[name] = true
      subscribers = subscribers + (redis.call('HGET', counts, topic .. '\31' .. name) or 0)
    end
  end
  return subscribers, lives
end

-- Return the newest change, when the nodes were noted first, whether all had the time to say who is
-- present since then, how many subscribers there are, and the infos: these without one node. If
-- there is no newer change than the caller knows, return only that.
local function read(topic, without, known)
  local newest = redis.call('XREVRANGE', changes, '+', '-', 'COUNT', 1)[1]
  local id = newest and newest[1] or '0-0'
  if id == known then
    return {id}
  end
  local born = redis.call('ZSCORE', nodes, 'born') or ''
  local subscribers, lives = total(topic, without)
  local reply = {id, born, born ~= '' and now - born > lease and 1 or 0, subscribers}
  local first, last = with(topic)
  for _, entry in ipairs(redis.call('ZRANGEBYLEX', members, first, last)) do
    local info, name = string.match(entry, '^([^\31]*)\31(.*)$', #topic + 2)
    if lives[name] and info ~= reply[#reply] then  -- the same infos are side by side
      reply[#reply + 1] = info
    end
  end
  return reply
end

if operation == 'sync' then
  return sync(ARGV[4] == '1', ARGV[5] == '1')
elseif operation == 'read' then
  return read(ARGV[4], ARGV[5], ARGV[6])
elseif operation == 'total' then
  return {(total(ARGV[4], ARGV[5]))}
elseif operation == 'leave' then
  if tonumber(redis.call('ZSCORE', nodes, node) or -1) >= 0 then
    redis.call('ZADD', nodes, now + tonumber(ARGV[4]), node)
    expire()
  end
elseif operation == 'broadcast' then
  redis.call('XADD', KEYS[1], 'MAXLEN', MESSAGES, '*', 'token', ARGV[4], 'message', ARGV[5])
  redis.call('PEXPIRE', KEYS[1], lease * 4)
elseif operation == 'time' then
  return {now}
end
