"""The reader of docs/how-to/browser-post.md, in Node: it decodes as sse_asgi.decoder does."""

from __future__ import annotations

import json
import os
import subprocess
from base64 import b64encode
from pathlib import Path

from sse_asgi.decoder import EventStreamDecoder

from .peers import require_node
from .test_docs import serving, write_files

PAGE = "docs/how-to/browser-post.md"

STREAMS = [
    "data: one\n\ndata: two\r\n\r\ndata: three\r\rdata: four\r\n\n",
    "\ufeffid: 1\nevent: a\ndata: snow \u2603 \U0001f389\ndata:  two\u2028lines\r\ndata\n\n",
    ":\n\n: a comment\n\nid: 2\n\nevent: none\n\nretry: 5\ndata: x\n\nretry: 5x\n\n",
    "id: a\0b\ndata: 1\n\nid: \xfc\U0001f389\ndata: 2\n\nid\ndata:3\n\n",
    "data : no field\nfoo: bar\ndata:a:b\ndata:\n\ndata\n\nevent: left\ndata: unfinished\n",
]

DRIVER = """
import { read } from "./events.mjs";

for (const chunks of JSON.parse(process.argv[2])) {
  const body = new ReadableStream({
    start(controller) {
      for (const chunk of chunks) controller.enqueue(Buffer.from(chunk, "base64"));
      controller.close();
    },
  });
  const response = new Response(body, { headers: { "content-type": "text/event-stream" } });
  const state = { lastEventId: "", retry: 3000 };
  const events = [];
  for await (const { event, data, id } of read(response, state)) events.push([event, data, id]);
  console.log(JSON.stringify([events, state.lastEventId, state.retry]));
}
"""


def cut(stream: bytes) -> list[list[bytes]]:
    """Into bytes, as a whole, and in two pieces at each place."""
    return [
        [stream[place : place + 1] for place in range(len(stream))],
        *([stream[:place], stream[place:]] for place in range(len(stream))),
    ]


def test_it_decodes_as_the_standard_says(tmp_path: Path) -> None:
    node = require_node()
    write_files(PAGE, tmp_path)
    (tmp_path / "driver.mjs").write_text(DRIVER)
    for text in STREAMS:
        decoder = EventStreamDecoder()
        events = [[e.event, e.data, e.id] for e in decoder.feed(text.encode())]
        assert events
        expected = [events, decoder.last_event_id, decoder.reconnection_time or 3000]
        cuts = [[b64encode(c).decode() for c in chunks] for chunks in cut(text.encode())]
        done = subprocess.run(
            [node, "driver.mjs", json.dumps(cuts)], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        found = [json.loads(line) for line in done.stdout.rstrip("\n").split("\n")]
        assert found == [expected] * len(cuts)


def test_it_comes_back(tmp_path: Path) -> None:
    """The command of the page, while its server runs."""
    node = require_node()
    write_files(PAGE, tmp_path)
    with serving("uvicorn chat:app", tmp_path) as url:
        program = tmp_path / "count.mjs"
        program.write_text(program.read_text().replace("http://127.0.0.1:8000/", url))
        done = subprocess.run(
            [node, "count.mjs"], cwd=tmp_path, capture_output=True, text=True, env={**os.environ}
        )
        assert done.stdout.split() == [*map(str, range(1, 31)), "AbortError"], done.stderr
    assert (tmp_path / "log").read_text().count("GET /count") > 1
