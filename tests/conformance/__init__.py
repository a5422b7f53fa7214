"""Event streams and HTTP answers that clients are compared with, one case for each rule.

The standard is WHATWG HTML 9.2. The cases are data (`cases`), a server sends them byte by byte
(`server`), drivers make each client follow them (`drivers`), and what others do else is recorded
(`known`). `python -m tests.conformance` writes the table of the documentation.
"""
