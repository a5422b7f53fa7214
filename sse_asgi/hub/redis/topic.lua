-- The log of one topic. Redis runs this script atomically.
--
-- KEYS[1]  the events: a stream. The ids of its entries are <generation>-<offset>. An empty stream
--          still has its last id, so the generation and the last offset are never lost separately.
--          A generation is the time in microseconds at which it began: a reader that waits for
--          entries after an id of an old generation gets those of the new one.
-- KEYS[2]  the keys of these events, with their offsets: a sorted set. Each event has a key, so
--          that an append may be sent again. The members with an infinite offset are no keys: the id
--          of the topic's entry in KEYS[3]; after "=", the check of the newest event if that event
--          is gone; "!" if the topic has ended; and, if it has a run, "@" and its runner, and after
--          "~" the event that ends it if the lease of the runner ends.
-- KEYS[3]  the topics of this shard, in the order in which they were created: a stream.
-- KEYS[4]  the topics of this shard that have a runner, with the time in milliseconds at which its
--          lease ends: a sorted set.
--
-- ARGV     operation, topic;
--          the newest event that the caller knows: generation, offset, check;
--          limits: events, bytes, milliseconds of age (0: none), milliseconds until a topic that
--          is not used is deleted (0: never);
--          the arguments of the operation.

local log, keys, topics, runs = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local operation, topic = ARGV[1], ARGV[2]
local known = {generation = tonumber(ARGV[3]), offset = tonumber(ARGV[4]), check = ARGV[5]}
local max_events, max_bytes = tonumber(ARGV[6]), tonumber(ARGV[7])
local max_age, forget_after = tonumber(ARGV[8]), tonumber(ARGV[9])

-- The indexes of the values of an entry. The size is that of all bodies up to this one, so the sizes
-- of two entries tell how many bytes are between them. Each entry has its own check, and that of the
-- event before it.
local BODY, SIZE, TIME, KEY, COLLAPSE_KEY, CHECK, BEFORE, FINAL = 2, 4, 6, 8, 10, 12, 14, 16

local DIGITS = '0123456789abcdefghijklmnopqrstuvwxyz'

local function id(generation, offset)
  return string.format('%.0f-%.0f', generation, offset)
end

local function parse(text)
  local generation, offset = string.match(text, '^(%d+)-(%d+)$')
  return tonumber(generation), tonumber(offset)
end

-- Return the generation, the offset of the newest event, and its values if it still exists.
local function newest()
  local entry = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  if entry then
    local generation, offset = parse(entry[1])
    return generation, offset, entry[2]
  end
  if redis.call('EXISTS', log) == 1 then
    local info = redis.call('XINFO', 'STREAM', log)
    for i = 1, #info, 2 do
      if info[i] == 'last-generated-id' then
        return parse(info[i + 1])
      end
    end
  end
end

local generation, last, values = newest()
local is_new = not generation
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- The first event creates a topic. Until then, a read writes nothing, and tells the present moment:
-- the generation is 0, and the offset is the time in milliseconds.
if is_new and operation == 'read' then
  return {0, 0, now + 1, now, 0, '', '', ''}
end

-- Return the check of an event: it stands for its key, and for the check before it, and so for all
-- events before it. Redis may come back without its newest events, and no caller may know them: the
-- events that take their places have other checks.
local function check_of(before, key)
  local number = tonumber(string.sub(redis.sha1hex(before .. ' ' .. key), 1, 8), 16)
  local check = ''
  for _ = 1, 4 do
    local digit = number % 36
    check = string.sub(DIGITS, digit + 1, digit + 1) .. check
    number = (number - digit) / 36
  end
  return check
end

-- Return the members of the sorted set that are no keys, by their first character; that of the
-- topic's entry is ''.
local function notes()
  local found = {}
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', keys, '+inf', '+inf')) do
    found[string.match(member, '^[!=@~]') or ''] = member
  end
  return found
end

-- Note the check of the newest event, which is about to go.
local function note_check(check)
  local noted = notes()['=']
  if noted then
    redis.call('ZREM', keys, noted)
  end
  redis.call('ZADD', keys, '+inf', '=' .. check)
end

-- Return the check of the newest event; '': it is not known, or there was no event.
local function last_check()
  if values then
    return values[CHECK] or ''
  end
  local noted = notes()['=']
  return noted and string.sub(noted, 2) or ''
end

-- Return the check of the event at an offset; '': it is not known.
local function check_at(offset)
  if offset >= last or offset < 1 then
    return offset == last and last_check() or ''
  end
  local at = id(generation, offset)
  local entry = redis.call('XRANGE', log, at, at)[1]
  if entry then
    return entry[2][CHECK] or ''
  end
  local after = id(generation, offset + 1)
  entry = redis.call('XRANGE', log, after, after)[1]
  return entry and entry[2][BEFORE] or ''
end

-- Enter the topic in the topics of its shard, unless it is there: Redis may have evicted them.
local function enter()
  local entry = notes()['']
  if not entry or #redis.call('XRANGE', topics, entry, entry) == 0 then
    if entry then
      redis.call('ZREM', keys, entry)
    end
    redis.call('ZADD', keys, '+inf', redis.call('XADD', topics, '*', 'topic', topic))
  end
end

-- Return whether the newest event was the final one.
local function has_ended()
  if values then
    return values[FINAL] == '1'
  end
  return notes()['!'] ~= nil
end

-- Begin a generation: an empty stream whose last id has this offset.
local function begin(at, offset)
  redis.call('XADD', log, id(at, offset), 'begin', '')
  redis.call('XDEL', log, id(at, offset))
end

-- Return whether the log does not have the event that the caller knows: Redis has been restored
-- with older data. Without a new generation, ids would get a second meaning.
local function is_older()
  if known.generation ~= generation then
    return known.generation > generation
  end
  if known.offset > last then
    return true
  end
  local check = known.check ~= '' and check_at(known.offset) or ''
  return check ~= '' and check ~= known.check
end

-- What only a runner may append creates no topic.
local function is_of_runs()
  for i = 14, #ARGV, 5 do
    if ARGV[i] == '' then
      return false
    end
  end
  return true
end

if is_new and operation == 'append' and is_of_runs() then
  local reply = {0, 0}
  for _ = 14, #ARGV, 5 do
    reply[#reply + 1] = -2
    reply[#reply + 1] = ''
  end
  return reply
end

-- A topic that is gone has no runner.
if is_new and (operation == 'renew' or operation == 'expire') then
  redis.call('ZREM', runs, topic)
  return {0, 0, 0}
end

if is_new or is_older() then
  local later = math.max(
    clock[1] * 1000000 + clock[2], known.generation + 1, (generation or 0) + 1)
  if not is_new then
    -- The events keep their offsets.
    local entries = redis.call('XRANGE', log, '-', '+')
    for _, entry in ipairs(entries) do
      local _, offset = parse(entry[1])
      redis.call('XADD', log, id(later, offset), unpack(entry[2]))
    end
    redis.call('XTRIM', log, 'MINID', id(later, 0))
    if #entries == 0 then
      begin(later, last)
    end
  else
    last = 0
    redis.call('DEL', keys)
    enter()
    begin(later, 0)
  end
  generation = later
end

-- Remove the events beyond the limits, and return the offset of the oldest event that is left.
local function trim()
  local total = values and tonumber(values[SIZE]) or 0
  local trimmed, first = false, last + 1
  while true do
    local entry = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
    if not entry then
      first = last + 1
      break
    end
    local oldest = entry[2]
    local _, offset = parse(entry[1])
    first = offset
    if last - offset < max_events
      and total - oldest[SIZE] + #oldest[BODY] <= max_bytes
      and (max_age == 0 or tonumber(oldest[TIME]) > now - max_age)
    then
      break
    end
    if offset == last then
      note_check(oldest[CHECK] or '')
    end
    redis.call('XDEL', log, entry[1])
    trimmed = true
  end
  if trimmed then
    redis.call('ZREMRANGEBYSCORE', keys, '-inf', first - 1)
  end
  return first
end

-- Return whether the topic has this runner; '*': any.
local function has_runner(runner)
  if runner == '*' then
    return notes()['@'] ~= nil
  end
  return redis.call('ZSCORE', keys, '@' .. runner) ~= false
end

-- Append events, each with five of these arguments: body, key, collapse key, '1' if it is the final
-- one, and the runner; '': anybody may append it. Return the offset and the check of each. If the
-- topic has ended, the offset of an event that it does not have is -1; without that runner, -2.
local function append(arguments)
  if max_age > 0 then
    trim()
  end
  local reply = {is_new and 1 or 0, generation}
  local before, is_large, ended, check = last, false, has_ended(), last_check()
  local time = string.format('%.0f', now)
  for i = 1, #arguments - 4, 5 do
    local body, key, offset = arguments[i], arguments[i + 1], last + 1
    local is_final, runner = arguments[i + 3], arguments[i + 4]
    if ended then
      offset = tonumber(redis.call('ZSCORE', keys, key) or -1)
    elseif runner ~= '' and not has_runner(runner) then
      offset = tonumber(redis.call('ZSCORE', keys, key) or -2)
    elseif redis.call('ZADD', keys, 'NX', offset, key) == 0 then
      local stored = tonumber(redis.call('ZSCORE', keys, key))
      if last == before or stored > last - max_events then
        offset = stored
      else -- it was beyond the limit when the events of this call before it had been appended
        redis.call('ZADD', keys, offset, key)
      end
    end
    if offset > last then
      local size = (values and values[SIZE] or 0) + #body
      local check_before = check
      check, ended = check_of(check_before, key), is_final == '1'
      values = {'body', body, 'size', string.format('%.0f', size), 'time', time, 'key', key,
        'collapse_key', arguments[i + 2], 'check', check, 'before', check_before,
        'final', is_final}
      redis.call('XADD', log, id(generation, offset), unpack(values))
      last = offset
      is_large = is_large or #body * 64 > max_bytes
    end
    reply[#reply + 1] = offset
    reply[#reply + 1] = check_at(offset)
  end
  if ended then
    redis.call('ZADD', keys, '+inf', '!')
    redis.call('ZREM', runs, topic)
  end
  if last > before and last > max_events then
    redis.call('XTRIM', log, 'MAXLEN', max_events)
    redis.call('ZREMRANGEBYSCORE', keys, '-inf', last - max_events)
  end
  -- Looking at the oldest event costs as much as an append, so it is done for one in 16 only. Until
  -- the next read, the log may have a quarter too many bytes.
  if is_large or math.floor(last / 16) > math.floor(before / 16) then
    trim()
    enter()
  end
  return reply
end

-- Return how far the log reaches, and whether the topic has ended. Then three checks: of the event
-- before the oldest one, of the newest one, and of the one at the offset. Then the events after the
-- offset: up to so many bytes, and at least one if there is one. The offset '' asks for no events.
local function read(after, room)
  local first = trim()
  enter()
  local offset = after == '' and last or tonumber(after)
  local reply = {
    is_new and 1 or 0, generation, first, last, has_ended() and 1 or 0,
    check_at(first - 1), last_check(), check_at(offset),
  }
  offset = math.max(offset, first - 1)
  while offset < last do
    local entries = redis.call('XRANGE', log, id(generation, offset + 1), '+', 'COUNT', 50)
    if #entries == 0 then
      break
    end
    for _, entry in ipairs(entries) do
      local body = entry[2][BODY]
      if #reply > 8 and #body > room then
        return reply
      end
      room = room - #body
      _, offset = parse(entry[1])
      table.insert(reply, offset)
      for _, index in ipairs({BODY, COLLAPSE_KEY, CHECK, FINAL}) do
        table.insert(reply, entry[2][index] or '')
      end
    end
  end
  return reply
end

-- Have a runner's lease end so many milliseconds from now.
local function lease(milliseconds)
  redis.call('ZADD', runs, string.format('%.0f', now + milliseconds), topic)
end

-- End the topic with the event that its runner has left for this, if its lease has ended.
local function expire()
  local noted = notes()
  local ends = tonumber(redis.call('ZSCORE', runs, topic) or now + 1)
  if noted['@'] and ends <= now then
    append({string.sub(noted['~'] or '~', 2), '!' .. noted['@'], '', '1', ''})
  end
  if not noted['@'] or has_ended() then
    redis.call('ZREM', runs, topic)
  end
end

-- Make a runner that of the topic. Return 1; -1: the topic has ended; -2: it has another runner.
-- If the caller can tell that a runner whose lease has ended is dead, the topic of such a one ends.
local function run(runner, milliseconds, event, can_tell)
  if can_tell then
    expire()
  end
  local found = notes()['@']
  if has_ended() then
    return -1
  end
  if found and found ~= '@' .. runner then
    if not redis.call('ZSCORE', runs, topic) then
      lease(milliseconds) -- Redis may have evicted it
    end
    return -2
  end
  if not found then
    redis.call('ZADD', keys, '+inf', '@' .. runner, '+inf', '~' .. event)
  end
  lease(milliseconds)
  return 1
end

-- Renew the lease of a runner. Return 0 if the topic has ended, or does not have that runner.
local function renew(runner, milliseconds)
  if has_ended() or not has_runner(runner) then
    return 0
  end
  lease(milliseconds)
  return 1
end

local reply
if operation == 'append' then
  local arguments = {}
  for i = 10, #ARGV do
    arguments[i - 9] = ARGV[i]
  end
  reply = append(arguments)
elseif operation == 'read' then
  reply = read(ARGV[10], tonumber(ARGV[11]))
else
  local status = 0
  if operation == 'run' then
    status = run(ARGV[10], tonumber(ARGV[11]), ARGV[12], ARGV[13] == '1')
  elseif operation == 'renew' then
    status = renew(ARGV[10], tonumber(ARGV[11]))
  else
    expire()
  end
  reply = {is_new and 1 or 0, generation, status}
end
if forget_after > 0 then
  redis.call('PEXPIRE', log, forget_after)
  redis.call('PEXPIRE', keys, forget_after)
end
return reply
