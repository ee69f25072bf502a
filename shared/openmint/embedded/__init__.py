"""NATS and Postgres as child processes, from wheels, with their state in the state directory.

Both classes are synchronous; call `start` and `stop` in a thread from a running event loop. What a server is reached by
is written to `endpoints.json`, which `CommonSettings.resolve()` reads. A server that outlived its starter is adopted.
"""
