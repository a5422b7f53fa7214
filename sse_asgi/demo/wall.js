// The wall: what anybody says, everybody sees.

import { $, append, build, post } from "./stream.js";

const MESSAGES = 200; // rows kept
const wall = $("wall");

export const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB");
const put = (row) => append(wall, build(row), MESSAGES);

// While the server tells what there was, a screen reader does not read it all.
export function busy(is) { wall.setAttribute("aria-busy", is); }

export function onSaid(event) {
  const { name, text, time } = JSON.parse(event.data);
  put({ text, who: name, at: clock(time) });
}

export function mark(note) { if (wall.childElementCount) put({ note }); }

// What the server still has comes after this. What is on the page stays there.
export function onGap(missed) {
  const messages = wall.querySelectorAll(".row:not(.forgotten)");
  if (missed !== null) {
    put({ note: `${missed.toLocaleString("en")} ${missed === 1 ? "message is" : "messages are"} missing here`, kind: "restart" });
  } else if (messages.length) {
    for (const row of messages) row.classList.add("forgotten");
    put({ note: "the server forgot the messages above when it was restarted: only this tab has them", kind: "restart" });
  }
}

// A name to begin with. A browser may refuse to remember another.
function remembered() {
  try { return localStorage.getItem("name"); } catch { return null; }
}
function remember(name) {
  try { localStorage.setItem("name", name); } catch { /* for this tab only, then */ }
}
$("name").value = remembered() ?? `Guest ${100 + (crypto.getRandomValues(new Uint16Array(1))[0] % 900)}`;
$("name").addEventListener("change", () => { if ($("name").value.trim()) remember($("name").value.trim()); });

// Whether a message has arrived, nobody knows when its answer has not: it is sent again with the
// same key, and the server takes it once.
const draft = { name: "", text: "", key: "" };
let sending = false;

async function say() {
  const text = $("text").value.trim();
  const name = $("name").value.trim();
  if (!text || !name || sending) return;
  if (text !== draft.text || name !== draft.name) {
    Object.assign(draft, { name, text, key: crypto.getRandomValues(new Uint32Array(4)).join("-") });
  }
  sending = true;
  try {
    await post("say", draft);
    draft.text = "";
    if ($("text").value.trim() === text) $("text").value = "";
    $("unsaid").textContent = "";
  } catch (error) {
    $("unsaid").textContent = `Not sent, try again: ${error.message}`;
  }
  sending = false;
}
$("say").addEventListener("submit", (event) => { event.preventDefault(); say(); });
