// The charts: samples of the machine, drawn on canvases.

import { $ } from "./stream.js";

const SPAN = 120; // seconds shown, and fewer while there are fewer
const SHORTEST = 30;
const GAP = 2.5; // seconds without a sample, after which there was no connection

// Samples of the last two minutes.
const samples = [];
let arrived = 0; // when the last one came
let dirty = true;
let drawn = 0;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

// The time at the right edge of all charts.
function edge() {
  const last = samples.length ? samples[samples.length - 1].time : 0;
  // A second behind, so that the newest sample moves in rather than jumps in.
  return calm.matches ? last : last - 1 + (performance.now() - arrived) / 1000;
}

// Move a little towards the goal with each frame.
function ease(from, goal, span) {
  const next = from === null || calm.matches ? goal : from + (goal - from) * 0.3;
  return Math.abs(goal - next) < span * 0.002 ? goal : next;
}

class Chart {
  constructor(id, title, lines, format, range) {
    Object.assign(this, { canvas: $(id), title, lines, format, range, low: null, high: null, pointer: null });
    this.context = this.canvas.getContext("2d");
    new ResizeObserver(() => { this.fit(); dirty = true; }).observe(this.canvas);
    this.canvas.addEventListener("pointermove", (event) => { this.pointer = event.offsetX; dirty = true; });
    this.canvas.addEventListener("pointerleave", () => { this.pointer = null; dirty = true; });
    this.fit();
  }

  fit() {
    const scale = window.devicePixelRatio || 1;
    this.scale = scale;
    this.width = this.canvas.clientWidth;
    this.height = this.canvas.clientHeight;
    this.canvas.width = Math.round(this.width * scale);
    this.canvas.height = Math.round(this.height * scale);
  }

  describe() {
    const last = samples[samples.length - 1];
    const parts = this.lines.map(({ name, key }) => {
      const most = Math.max(...samples.map((sample) => sample[key]));
      return `${name} ${this.format(last[key])}, at most ${this.format(most)}`;
    });
    this.canvas.setAttribute("aria-label", `${this.title}, last two minutes: ${parts.join("; ")}`);
  }

  draw(right) {
    if (this.scale !== (window.devicePixelRatio || 1)) this.fit();
    const { context: c, width, height } = this;
    const span = samples.length ? Math.min(Math.max(right - samples[0].time, SHORTEST), SPAN) : SPAN;
    const left = right - span;
    const roof = 20.5, floor = Math.round(height - 20) + 0.5;
    const [low, high] = this.range();
    this.low = ease(this.low, low, high - low);
    this.high = ease(this.high, high, high - low);
    // Of two lines the second hangs down from the middle: they do not hide each other.
    const zero = this.lines.length > 1 ? Math.round((roof + floor) / 2) + 0.5 : floor;
    const x = (time) => ((time - left) / span) * width;
    const part = (value) => Math.min(Math.max((value - this.low) / (this.high - this.low), 0), 1);
    const y = (value, down) => zero - part(value) * (zero - roof) * (down ? -1 : 1);

    c.setTransform(this.scale, 0, 0, this.scale, 0, 0);
    c.clearRect(0, 0, width, height);
    c.font = "11px system-ui, sans-serif";
    c.lineWidth = 1;
    c.strokeStyle = ink("--grid");
    c.beginPath();
    for (const quarter of [0, 1, 2, 3, 4]) {
      const line = Math.round(floor - (quarter / 4) * (floor - roof)) + 0.5;
      c.moveTo(0, line);
      c.lineTo(width, line);
    }
    c.stroke();
    if (zero !== floor) {
      c.strokeStyle = ink("--muted");
      c.globalAlpha = 0.5;
      c.beginPath();
      c.moveTo(0, zero);
      c.lineTo(width, zero);
      c.stroke();
      c.globalAlpha = 1;
    }

    const shown = samples.filter(({ time }) => time > left - 3);
    const runs = [];
    shown.forEach((sample, i) => {
      if (i === 0 || sample.time - shown[i - 1].time > GAP) runs.push([]);
      runs[runs.length - 1].push(sample);
    });
    this.gaps(runs, x, roof, floor, right);
    this.lines.forEach(({ key, color, fill }, i) => {
      for (const run of runs) this.line(run, key, ink(color), fill, x, (value) => y(value, i), zero, i ? floor : roof);
    });

    c.fillStyle = ink("--muted");
    c.textAlign = "left";
    c.fillText(span === SPAN ? "2 min ago" : `${Math.round(span)} s ago`, 0, height - 4);
    c.textAlign = "right";
    c.fillText("now", width, height - 4);
    if (low > 0) { // where an axis begins is to be seen: by default it is 0
      c.textAlign = "center";
      c.fillText(`scale begins at ${this.format(low)}`, width / 2, height - 4);
      c.textAlign = "right";
    }
    if (this.pointer !== null && shown.length) this.inspect(shown, x, y, roof, floor, right);
    else if (samples.length) c.fillText(this.format(high), width, roof - 6);
  }

  gaps(runs, x, roof, floor, right) {
    const c = this.context;
    const band = (from, to) => {
      if (to - from < 1) return;
      c.save();
      c.strokeStyle = ink("--edge");
      c.beginPath();
      c.rect(from, roof, to - from, floor - roof);
      c.clip();
      c.beginPath();
      const shift = from % 7;
      for (let at = from - shift - (floor - roof); at < to; at += 7) { c.moveTo(at, floor); c.lineTo(at + floor - roof, roof); }
      c.stroke();
      c.restore();
    };
    for (let i = 1; i < runs.length; i += 1) band(x(runs[i - 1][runs[i - 1].length - 1].time), x(runs[i][0].time));
    const last = runs.length && runs[runs.length - 1];
    if (last && right - last[last.length - 1].time > GAP) band(x(last[last.length - 1].time), this.width);
  }

  line(run, key, color, fill, x, y, zero, far) {
    const c = this.context;
    c.beginPath();
    run.forEach((sample, i) => { c[i ? "lineTo" : "moveTo"](x(sample.time), y(sample[key])); });
    if (run.length === 1) c.lineTo(x(run[0].time) + 0.01, y(run[0][key]));
    c.strokeStyle = color;
    c.lineWidth = 1.8;
    c.lineJoin = c.lineCap = "round";
    c.stroke();
    c.lineTo(x(run[run.length - 1].time), zero);
    c.lineTo(x(run[0].time), zero);
    const shade = c.createLinearGradient(0, far, 0, zero);
    shade.addColorStop(0, color);
    shade.addColorStop(1, `${color}22`);
    c.globalAlpha = fill;
    c.fillStyle = shade;
    c.fill();
    c.globalAlpha = 1;
    c.lineWidth = 1;
  }

  inspect(shown, x, y, roof, floor, right) {
    const c = this.context;
    const near = shown.reduce((best, sample) => (Math.abs(x(sample.time) - this.pointer) < Math.abs(x(best.time) - this.pointer) ? sample : best));
    const at = Math.min(Math.max(x(near.time), 0), this.width);
    c.strokeStyle = ink("--muted");
    c.beginPath();
    c.moveTo(Math.round(at) + 0.5, roof);
    c.lineTo(Math.round(at) + 0.5, floor);
    c.stroke();
    this.lines.forEach(({ key, color }, i) => {
      c.beginPath();
      c.arc(at, y(near[key], i), 3.5, 0, 7);
      c.fillStyle = ink(color);
      c.fill();
    });
    const ago = Math.max(0, Math.round(right - near.time));
    const values = this.lines.map(({ key, mark = "" }) => mark + this.format(near[key])).join("  ");
    const text = `${ago} s ago   ${values}`;
    const space = c.measureText(text).width + 14;
    const from = Math.min(Math.max(at - space / 2, 0), this.width - space);
    c.fillStyle = ink("--text");
    c.fillRect(from, 0, space, 19);
    c.fillStyle = ink("--card");
    c.textAlign = "left";
    c.fillText(text, from + 7, 13);
  }
}

const inks = new Map();
function ink(name) {
  if (!inks.has(name)) inks.set(name, getComputedStyle(document.documentElement).getPropertyValue(name).trim());
  return inks.get(name);
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { inks.clear(); dirty = true; });

function scaled(value, base, units) {
  let unit = 0;
  while (value >= base * 0.9995 && unit < units.length - 1) { value /= base; unit += 1; }
  const digits = unit === 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return [value.toFixed(digits), units[unit]];
}
export const rate = (value) => scaled(value, 1000, ["B/s", "kB/s", "MB/s", "GB/s"]);
export const size = (value) => scaled(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]);
const percent = (value) => `${Math.round(value)} %`;

// The next 1, 2 or 5 with zeros, so that the scale changes seldom.
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1000)));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

const all = (...keys) => samples.flatMap((sample) => keys.map((key) => sample[key]));

// Memory changes little beside all that there is: its scale is that of what happens, in steps of
// powers of 2.
function memoryRange() {
  if (!samples.length) return [0, 1];
  const used = all("memory_used");
  const total = samples[samples.length - 1].memory_total;
  const least = Math.min(...used), most = Math.max(...used);
  const step = 2 ** Math.ceil(Math.log2(Math.max(most - least, total / 200) / 2));
  return [Math.max(0, Math.floor(least / step - 0.5) * step), Math.min(total, Math.ceil(most / step + 0.5) * step)];
}

const charts = [
  new Chart("cpu-chart", "CPU load", [{ name: "all processors", key: "cpu", color: "--cpu", fill: 0.38 }], percent, () => [0, 100]),
  new Chart("memory-chart", "Memory in use", [{ name: "used", key: "memory_used", color: "--memory", fill: 0.38 }],
    (value) => size(value).join(" "), memoryRange),
  new Chart("network-chart", "Network traffic", [
    { name: "received", key: "received", color: "--received", fill: 0.38, mark: "↓ " },
    { name: "sent", key: "sent", color: "--sent", fill: 0.38, mark: "↑ " },
  ], (value) => rate(value).join(" "), () => [0, roundUp(Math.max(1000, ...all("received", "sent")))]),
];

function put(id, [value, unit]) {
  $(id).textContent = value;
  $(`${id}-unit`).textContent = unit;
}

export function showSample(sample) {
  // A clock that was set back would fold the charts over themselves.
  while (samples.length && samples[samples.length - 1].time >= sample.time) samples.pop();
  samples.push(sample);
  while (samples[0].time < sample.time - SPAN - 5) samples.shift();
  arrived = performance.now();
  $("cpu").textContent = Math.round(sample.cpu);
  put("memory", size(sample.memory_used));
  $("memory-share").textContent = `${Math.round((100 * sample.memory_used) / sample.memory_total)} % of ${size(sample.memory_total).join(" ")}`;
  put("received", rate(sample.received));
  put("sent", rate(sample.sent));
  const cores = $("cores");
  while (cores.childElementCount < sample.cores.length) cores.append(document.createElement("i"));
  while (cores.childElementCount > sample.cores.length) cores.lastChild.remove();
  sample.cores.forEach((load, i) => cores.children[i].style.setProperty("--load", load / 100));
  cores.title = sample.cores.map((load, i) => `${i}: ${Math.round(load)} %`).join("\n");
  cores.setAttribute("aria-label", `Load of each processor: ${sample.cores.map(percent).join(", ")}`);
  charts.forEach((chart) => chart.describe());
  dirty = true;
}

const PACE = 50; // milliseconds: the charts move by less than a pixel in that time

export function paintCharts(now, live) {
  $("cards").classList.toggle("stale", !live || !samples.length);
  if (!dirty && (!samples.length || calm.matches || now - drawn < PACE)) return;
  drawn = now;
  const right = edge();
  charts.forEach((chart) => chart.draw(right));
  dirty = false;
}
