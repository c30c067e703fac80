"""From events to a broker: outbox, connection, topics."""
