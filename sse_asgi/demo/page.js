// The page: the connection that all comes by, what becomes of it, and what one can do to it.

import { paintCharts, showSample, size } from "./charts.js";
import { paintLog, showLog } from "./log.js";
import { $, Stream, append, build, post } from "./stream.js";
import * as wall from "./wall.js";

const KEPT = 100; // rows of what has happened

// The server can tell this tab from others, to disconnect it.
const client = crypto.getRandomValues(new Uint32Array(4)).join("-");

// What is known of the connection, and of what was lost with the one before.
let about = null; // what the server has said first
let replay = null; // what it sends of the time before, until something comes that is new
let newest = null; // the number of the newest sample
let lostAt = 0;
let tries = 0;
let backAt = 0; // when a server that has stopped is to be back

const many = (count, one, more) => `${count.toLocaleString("en")} ${count === 1 ? one : more}`;

function note(text, kind) {
  append($("happened"), build({ at: wall.clock(Date.now() / 1000), text, kind }), KEPT);
}

function onMachine(event) {
  about = JSON.parse(event.data);
  const { host, system, cores, memory, python } = about;
  document.title = `${host}, live: sse_asgi`;
  $("facts").textContent = `${host} · ${system} · ${many(cores, "processor", "processors")} · ${size(memory).join(" ")} · Python ${python}`;
  $("stop").classList.toggle("none", about.away === null);
  showLog(about.log);
  replay = { again: stats.reconnects > 0, events: 0, missing: 0, forgotten: false };
  if (!replay.again) return;
  const seconds = ((performance.now() - lostAt) / 1000).toFixed(1);
  const id = about.last_event_id;
  note(`connected again after ${seconds} s and ${many(tries, "try", "tries")}, ${id ? `with Last-Event-ID ${id}` : "without a Last-Event-ID"}`, "good");
}

// Something that happened before this connection began is a replay. The first that is newer says
// that the replay is over.
function count(time) {
  if (!replay) return;
  if (time <= about.time) {
    replay.events += 1;
    return;
  }
  const { again, events, missing, forgotten } = replay;
  replay = null;
  wall.busy(false);
  if (!again) note(`connected: the server began with ${many(events, "event", "events")} of the time before`, "good");
  else if (forgotten) note("the server was restarted, and has forgotten what was before", "warn");
  else if (missing) note(`${many(events, "event", "events")} replayed, ${many(missing, "is", "are")} missing`, "bad");
  else note(`${many(events, "event", "events")} replayed, none is missing`, "good");
}

function onSample(event) {
  const sample = JSON.parse(event.data);
  count(sample.time);
  if (newest !== null && replay) replay.missing += sample.number - newest - 1;
  newest = sample.number;
  showSample(sample);
  showFigures(sample.server);
}

function onSaid(event) {
  count(JSON.parse(event.data).time);
  wall.onSaid(event);
}

function onGap(event) {
  const { topic, missed } = JSON.parse(event.data);
  if (topic === "wall") {
    wall.onGap(missed);
  } else if (missed === null) { // the numbers begin anew
    newest = null;
    if (replay) replay.forgotten = true;
  }
}

// The server says why it ends the response.
function onGoodbye(event) {
  const { reason, seconds } = JSON.parse(event.data);
  if (seconds !== null) backAt = performance.now() + seconds * 1000;
  if (reason === "disconnected") note("the server ended this response, as you asked");
  else note(`the server is stopping${seconds === null ? "" : `, to be back in ${seconds} s`}`, "warn");
}

const stats = new Stream(`events?client=${client}`, $("stats-status"), {
  on: { machine: onMachine, sample: onSample, said: onSaid, gap: onGap, goodbye: onGoodbye },
  lost: ({ state }) => {
    lostAt = performance.now();
    tries = 1;
    wall.busy(true);
    wall.mark("connection lost");
    if (state === "connecting") note("connection lost: the browser tries again by itself (readyState 0)");
  },
  failed: (stream, closed) => {
    tries += 1;
    if (closed) note("an HTTP error: this EventSource gave up (readyState 2), the page makes another", "bad");
  },
  reconnected: () => wall.mark("connected again"),
});

function showFigures({ open, events, bytes, closed }) {
  $("open-streams").textContent = open.toLocaleString("en");
  $("events-sent").textContent = events.toLocaleString("en");
  $("bytes-sent").textContent = size(bytes).join(" ");
  const others = { ...closed };
  for (const place of document.querySelectorAll("[data-reason]")) {
    const { reason } = place.dataset;
    const number = reason ? closed[reason] ?? 0 : Object.values(others).reduce((sum, each) => sum + each, 0);
    delete others[reason];
    place.textContent = number.toLocaleString("en");
  }
}

// A button that can't be pressed now keeps the focus.
function button(id, act) {
  $(id).addEventListener("click", async () => {
    if ($(id).ariaDisabled === "true") return;
    $("refused").textContent = "";
    try {
      await act();
    } catch (error) {
      $("refused").textContent = error.message;
    }
  });
}
button("disconnect", () => post("disconnect", { client }));
button("stop", () => post("stop", {}));

for (const id of ["curl", "tail"]) $(id).textContent = $(id).textContent.replace("URL/", new URL(".", location).href);
for (const copy of document.querySelectorAll("[data-copies]")) {
  copy.addEventListener("click", async () => {
    const command = $(copy.dataset.copies);
    try {
      await navigator.clipboard.writeText(command.textContent);
      $("copied").textContent = "Copied";
      copy.classList.add("done");
      setTimeout(() => { $("copied").textContent = ""; copy.classList.remove("done"); }, 2000);
    } catch { // not allowed here: somebody can copy what is selected
      getSelection().selectAllChildren(command);
    }
  });
}

function waiting(now) {
  if (stats.state === "open") return stats.reconnects ? "" : "Press one, and see it come back.";
  const seconds = Math.ceil((backAt - now) / 1000);
  const attempts = lostAt ? many(tries, "try", "tries") : "";
  return seconds > 0 ? `back in ${seconds} s · ${attempts}` : attempts;
}

function frame(now) {
  stats.paint();
  for (const id of ["disconnect", "stop"]) $(id).ariaDisabled = String(stats.state !== "open");
  const text = waiting(now);
  if ($("waiting").textContent !== text) $("waiting").textContent = text;
  paintCharts(now, stats.state === "open");
  paintLog(now);
  requestAnimationFrame(frame);
}
requestAnimationFrame(frame);
