"""A fuzz of streams: sources, clients and cancellations by chance, in this process and on servers.

``python -m tests.hostile.fuzz --help``
"""
