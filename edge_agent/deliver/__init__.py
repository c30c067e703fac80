"""Delivery: events go to disk first, then to the broker; none is lost.

::

    publish(event) -> outbox (SQLite, numbered) -> pump thread -> connection (MQTT) -> broker
                                                        ^ acknowledged rows are deleted

`outbox` stores events, `connection` is one MQTT connection, `publisher` moves events from the one to the
other and publishes retained messages, `commands` checks, runs and answers commands, `topics` names the
topics.
"""
