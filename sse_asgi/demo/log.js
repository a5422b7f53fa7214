// The log file: its lines, each with the byte at which it ends, and where there is no file a hint.

import { $, Stream, build } from "./stream.js";

const LINES = 2000; // rows kept
const log = { stream: null, waiting: [], following: true, unseen: 0, id: "", painted: 0 };
const lines = $("lines");

// The server says whether there is a file; after a restart that may have changed.
export function showLog(name) {
  const named = name !== null;
  $("log-name").textContent = name ?? "";
  $("hint").hidden = named;
  $("log").hidden = $("log-status").hidden = !named;
  if (named && !log.stream) {
    log.stream = new Stream("log", $("log-status"), {
      on: { message: onLine, restart: onRestart },
      lost: () => note("connection lost"),
      reconnected: ({ id }) => note(id ? `connected again, continuing at byte ${id}` : "connected again"),
    });
  } else if (!named && log.stream) {
    log.stream.close();
    Object.assign(log, { stream: null, waiting: [], following: true, unseen: 0, id: "" });
    lines.replaceChildren();
    $("jump").hidden = true;
  }
}

function wait(row) {
  log.waiting.push(row);
  // A burst is thinned out here: what would be scrolled out at once is never built.
  if (log.waiting.length > 2 * LINES) log.waiting.splice(0, log.waiting.length - LINES);
}

function note(text, kind) { wait({ note: text, kind }); }

function onLine(event) {
  // A piece of a very long line has no id of its own.
  wait({ text: event.data, at: event.lastEventId === log.id ? "⋯" : event.lastEventId, kind: severity(event.data.slice(0, 400)) });
  log.id = event.lastEventId;
  if (!log.following) log.unseen += 1;
}

function severity(line) {
  if (/\b(error|critical|fatal|panic|traceback)\b/i.test(line)) return "bad";
  return /\b(warn|warning)\b/i.test(line) ? "warn" : "";
}

function onRestart(event) {
  log.id = event.lastEventId;
  note(`${event.data}: reading from its beginning`, "restart");
}

export function paintLog(now) {
  log.stream?.paint();
  // In a burst, layout would take the time that the events need.
  if (log.waiting.length && (log.waiting.length < 100 || now - log.painted > 250)) {
    log.painted = now;
    lines.append(...log.waiting.slice(-LINES).map(build));
    log.waiting.length = 0;
    while (lines.childElementCount > LINES) lines.firstChild.remove();
    if (log.following) lines.scrollTop = lines.scrollHeight;
  }
  const jump = $("jump");
  jump.hidden = log.following || $("log").hidden;
  if (!jump.hidden) {
    const text = log.unseen ? `↓ ${log.unseen.toLocaleString("en")} new ${log.unseen === 1 ? "line" : "lines"}` : "↓ Follow";
    if (jump.textContent !== text) jump.textContent = text;
  }
}

function follow() {
  log.following = true;
  log.unseen = 0;
  lines.scrollTop = lines.scrollHeight;
}
$("jump").addEventListener("click", () => { follow(); lines.focus({ preventScroll: true }); });
lines.addEventListener("scroll", () => {
  log.following = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 30;
  if (log.following) log.unseen = 0;
});
new ResizeObserver(() => { if (log.following) lines.scrollTop = lines.scrollHeight; }).observe(lines);

