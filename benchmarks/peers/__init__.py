"""One server for each peer, all with the same paths.

- ``/stream``: events from a source that never waits, without end.
- ``/wait``: the same, but the source lets the event loop run after each.
- ``/events``: what is published.
- ``/publish?rate=&burst=``: publish so many events a second, or as many as can be where the rate
  is 0: in bursts of so many, between which the event loop runs.
- ``/idle``: a stream without events. Pings are sent each ``BENCHMARK_PING`` seconds, if that is
  set, else as often as the peer does by itself.
- ``/gc?freeze``, ``/gc?disable``: set the garbage collector. ``raw`` and ``sse_asgi`` have it.

``BENCHMARK_SHAPE`` says what events are like (``shapes.py``), and ``BENCHMARK_PLACE`` what is
around the stream (``places.py``). ``BENCHMARK_REDIS`` is the URL of a Redis for the hub of
``sse_asgi``.
"""
