"""The message bus: streams and consumers (one table), publishing, settling, dead letters, the outbox relay.

`connection.Bus` publishes; `broker.fact_subscriber` and `broker.command_subscriber` consume durably; `tail.Tail` feeds
views in memory; `outbox.OutboxRelay` carries facts from Postgres to the bus. Nothing here knows a table but `outbox`.
"""
