"""Delivery: events to disk, then to the broker, and nothing lost on the way.

::

    publish(event) -> outbox (SQLite, numbered) -> pump thread -> connection (MQTT) -> broker
                                                        ^ acknowledged rows are deleted

`outbox` keeps, `connection` talks MQTT, `publisher` pumps from the one to the other and publishes what is
retained, `commands` checks and answers what comes in, `topics` names the topics.
"""
