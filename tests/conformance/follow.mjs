// Follow cases with an EventSource, all at once: in a page, and in Node.
//   cases: [{url, types, closeAfter}]
//   patience: in milliseconds, how long a source may take until it is closed
// Returns what each has seen, as in model.py.

const STATES = ['connecting', 'open', 'closed']

// How long a source that is closed is watched.
const SETTLE = 300

function one(EventSource, {url, types, closeAfter}, patience) {
  return new Promise((resolve) => {
    const log = []
    const source = new EventSource(url)
    const done = () => {
      clearTimeout(timer)
      source.close()
      setTimeout(() => resolve(log), SETTLE)
    }
    const timer = setTimeout(() => {
      log.push(['late'])
      done()
    }, patience)
    const note = (event) => {
      if (event.lastEventId !== undefined) {
        log.push(['event', event.type, event.data, event.lastEventId])
      } else if (event.type === 'error') {
        log.push(['error', STATES[source.readyState]])
      } else {
        log.push([event.type])
      }
      if (log.length === closeAfter || source.readyState === source.CLOSED) done()
    }
    for (const type of new Set(['open', 'error', ...types])) source.addEventListener(type, note)
  })
}

export function follow(EventSource, cases, patience) {
  return Promise.all(cases.map((each) => one(EventSource, each, patience)))
}
