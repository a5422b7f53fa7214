// An oracle: what eventsource-parser makes of an event stream. One JSON value a line:
//   in:  the chunks of a stream, each in base64
//   out: {events: [{event, data, id}], comments, reconnectionTime, lastEventId}
// The parser takes text, so TextDecoder does the UTF-8 part; it leaves the BOM to the parser.
import {createInterface} from 'node:readline'
import {createParser} from 'eventsource-parser'

function parse(chunks) {
  const result = {events: [], comments: [], reconnectionTime: null, lastEventId: ''}
  const parser = createParser({
    onId: (id) => (result.lastEventId = id),
    onEvent: ({event = 'message', data}) =>
      result.events.push({event, data, id: result.lastEventId}),
    onComment: (comment) => result.comments.push(comment),
    // A string: JSON has no Infinity, which is what a long row of digits becomes.
    onRetry: (retry) => (result.reconnectionTime = String(retry)),
  })
  const decoder = new TextDecoder('utf-8', {ignoreBOM: true})
  for (const chunk of chunks) {
    parser.feed(decoder.decode(Buffer.from(chunk, 'base64'), {stream: true}))
  }
  return result
}

for await (const line of createInterface({input: process.stdin})) {
  process.stdout.write(JSON.stringify(parse(JSON.parse(line))) + '\n')
}
