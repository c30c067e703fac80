"""The tables of the outbox, and what their rows fulfil."""

LAYOUT = 1
"""`user_version` of the database."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS event (
    seq INTEGER PRIMARY KEY, topic TEXT NOT NULL, body BLOB NOT NULL, created REAL NOT NULL,
    gap INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS parked (
    seq INTEGER PRIMARY KEY, topic TEXT NOT NULL, body BLOB NOT NULL, created REAL NOT NULL,
    reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS dropped (first INTEGER PRIMARY KEY, last INTEGER NOT NULL, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS track (
    session TEXT NOT NULL, camera TEXT NOT NULL, track_id INTEGER NOT NULL, first INTEGER NOT NULL,
    body BLOB NOT NULL, PRIMARY KEY (session, camera, track_id));
"""
"""`track` is not in files of earlier versions, which ignore it."""
RULES = {
    "event": "seq > 0 AND seq < 1 << 53 AND typeof(topic) = 'text' AND typeof(body) = 'blob'"
    " AND typeof(created) = 'real' AND typeof(gap) = 'integer'",
    "parked": "seq > 0 AND seq < 1 << 53 AND typeof(topic) = 'text' AND typeof(body) = 'blob'"
    " AND typeof(created) = 'real' AND typeof(reason) = 'text'",
    "dropped": "first > 0 AND first <= last AND last < 1 << 53 AND typeof(last) = 'integer'"
    " AND typeof(reason) = 'text'",
    "track": "typeof(session) = 'text' AND typeof(camera) = 'text' AND typeof(track_id) = 'integer'"
    " AND typeof(first) = 'integer' AND typeof(body) = 'blob'",
    "meta": "typeof(key) = 'text' AND typeof(value) = 'integer' AND value BETWEEN 0 AND 1 << 53",
}
"""What the rows of each table fulfil; another program may have written anything."""
