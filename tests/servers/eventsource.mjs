// An EventSource that says what happens to it, one JSON value a line. Arguments: the URL, the
// number of events after which it closes (0: when the server tells it to), names to listen to.
import {EventSource} from 'eventsource'

const [url, count, ...names] = process.argv.slice(2)
const say = (what) => process.stdout.write(JSON.stringify(what) + '\n')

const source = new EventSource(url)
const alive = setInterval(() => {}, 1000) // while it waits to reconnect nothing else keeps node
const close = () => {
  source.close()
  clearInterval(alive)
}
let events = 0
for (const name of ['message', ...names]) {
  source.addEventListener(name, ({type, data, lastEventId}) => {
    say({type, data, lastEventId})
    if (++events === Number(count)) close()
  })
}
source.addEventListener('open', () => say({type: 'open'}))
source.addEventListener('error', ({code}) => {
  const closed = source.readyState === EventSource.CLOSED
  say({type: 'error', closed, code})
  if (closed) close()
})
