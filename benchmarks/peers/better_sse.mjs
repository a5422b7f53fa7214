// better-sse on Node's own HTTP server, with its defaults; a channel for the fan-out.
// It writes JSON unless it is told otherwise. BENCHMARK_EVENT has what a stream sends.
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { setImmediate as iteration, setTimeout as sleep } from "node:timers/promises";
import { once } from "node:events";

const { createSession, createChannel } = createRequire(process.env.BENCHMARK_NODE + "/")("better-sse");

const REST = " " + "x".repeat(78) + "$";
const EVENT = JSON.parse(process.env.BENCHMARK_EVENT);
const now = () => process.hrtime.bigint().toString().padStart(20, "0") + REST;

const channel = createChannel();
const options = { serializer: EVENT.json ? JSON.stringify : (text) => text };
const ping = process.env.BENCHMARK_PING;
if (ping !== undefined) options.keepAlive = Number(ping) * 1000;

async function stream(request, response, pause) {
  const session = await createSession(request, response, options);
  while (session.isConnected) {
    session.push(EVENT.data, EVENT.event, EVENT.id);
    if (response.writableNeedDrain) await once(response, "drain");
    else if (pause) await iteration();
  }
}

async function publish(rate, burst) {
  let due = performance.now();
  for (;;) {
    for (let i = 0; i < burst; i++) channel.broadcast(now());
    if (rate === 0) {
      await iteration();
      continue;
    }
    due += (burst / rate) * 1000;
    await sleep(Math.max(due - performance.now(), 0));
  }
}

createServer(async (request, response) => {
  const url = new URL(request.url, "http://localhost");
  if (url.pathname === "/publish") {
    response.end();
    publish(Number(url.searchParams.get("rate")), Number(url.searchParams.get("burst")));
  } else if (url.pathname === "/events") {
    channel.register(await createSession(request, response, options));
  } else if (url.pathname === "/idle") {
    await createSession(request, response, options);
  } else {
    await stream(request, response, url.pathname === "/wait");
  }
}).listen(Number(process.argv[2]), "127.0.0.1", 4096);
