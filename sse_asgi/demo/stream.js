// One event stream, and the place that shows how it is doing.

export const $ = (id) => document.getElementById(id);

// An EventSource comes back by itself when a connection ends, and tells its position in the field
// Last-Event-ID. After an HTTP error it stays closed: then a new one is made, which can tell its
// position in the query string only.
export class Stream {
  constructor(path, status, listeners) {
    Object.assign(this, { path, status, listeners, id: "", events: 0, reconnects: 0, opened: false, delay: 1000 });
    status.replaceChildren($("status").content.cloneNode(true));
    this.open();
  }

  open() {
    const url = new URL(this.path, location);
    if (this.id) url.searchParams.set("last_event_id", this.id);
    this.show("connecting");
    this.source = new EventSource(url);
    this.source.onopen = () => {
      const again = this.opened;
      this.opened = true;
      this.delay = 1000;
      this.show("open");
      if (again) {
        this.reconnects += 1;
        this.listeners.reconnected?.(this);
      }
    };
    this.source.onerror = () => {
      const was = this.state;
      const closed = this.source.readyState === EventSource.CLOSED;
      this.show(closed ? "closed" : "connecting");
      if (was === "open") this.listeners.lost?.(this);
      else this.listeners.failed?.(this, closed);
      if (!closed) return;
      this.timer = setTimeout(() => this.open(), this.delay);
      this.delay = Math.min(this.delay * 2, 10000);
    };
    for (const [name, listener] of Object.entries(this.listeners.on)) {
      this.source.addEventListener(name, (event) => {
        this.events += 1;
        this.id = event.lastEventId;
        this.changed = true;
        listener(event);
      });
    }
  }

  close() {
    clearTimeout(this.timer);
    this.source.close();
    this.show("closed");
  }

  show(state) {
    this.state = state;
    this.changed = true;
  }

  paint() {
    if (!this.changed) return;
    this.changed = false;
    const pill = this.status.querySelector(".state");
    if (pill.textContent !== this.state) {
      pill.textContent = this.state;
      pill.dataset.state = this.state;
    }
    const shown = {
      ready: this.source.readyState,
      events: this.events.toLocaleString("en"),
      reconnects: this.reconnects.toLocaleString("en"),
      id: this.id || "none",
    };
    for (const [name, text] of Object.entries(shown)) {
      const place = this.status.querySelector(`[data-is=${name}]`);
      place.textContent = text;
      if (name === "id") place.title = text;
    }
  }
}

// Rows of the lists on the page. Text from the file, and of messages, is only ever set as text.
const WIDEST = 4000; // characters of a text shown

export function build({ text, at, who, note, kind = "" }) {
  const row = document.createElement("div");
  if (note !== undefined) {
    row.className = `note ${kind}`;
    row.textContent = note;
    return row;
  }
  row.className = `row ${kind}`;
  const place = document.createElement("span");
  place.textContent = at;
  const body = document.createElement("span");
  const shown = text.length > WIDEST ? `${text.slice(0, WIDEST)} … ${(text.length - WIDEST).toLocaleString("en")} more characters` : text;
  if (who !== undefined) {
    const name = document.createElement("b");
    name.textContent = who;
    body.append(name, " ");
  }
  body.append(shown);
  row.append(place, body);
  return row;
}

// Append a row, and keep showing the last one to who has not scrolled away from it.
export function append(list, row, most) {
  const below = list.scrollHeight - list.scrollTop - list.clientHeight;
  list.append(row);
  while (list.childElementCount > most) list.firstChild.remove();
  if (below < 30) list.scrollTop = list.scrollHeight;
}

// Ask the server to do something; return what it says, or throw what it says against it.
export async function post(path, value) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(value),
    signal: AbortSignal.timeout(10000),
  });
  const text = (await response.text()).trim();
  if (!response.ok) throw new Error(text);
  return text;
}
