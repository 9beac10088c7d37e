
CREATE TABLE IF NOT EXISTS session (
    id         TEXT PRIMARY KEY CHECK (length(id) = 32),
    role       TEXT NOT NULL CHECK (role IN ('data-owner', 'model-owner')),
    peer       TEXT NOT NULL,
    state      TEXT NOT NULL CHECK (state IN
                   ('proposed', 'approved', 'offline', 'online', 'done', 'denied', 'failed', 'cancelled')),
    reason     TEXT NOT NULL DEFAULT '',
    terms      TEXT NOT NULL,
    own        TEXT NOT NULL,
    approved_by TEXT NOT NULL DEFAULT '',
    peer_software TEXT NOT NULL DEFAULT '',
    attempts   INTEGER NOT NULL DEFAULT 0,
    created    REAL NOT NULL,
    approved   REAL,
    started    REAL,
    finished   REAL,
    offline_seconds REAL NOT NULL DEFAULT 0,
    offline_bytes   INTEGER NOT NULL DEFAULT 0,
    online_seconds  REAL NOT NULL DEFAULT 0,
    online_bytes    INTEGER NOT NULL DEFAULT 0
);
CREATE TRIGGER IF NOT EXISTS session_moves BEFORE UPDATE OF state ON session BEGIN
    SELECT RAISE(ABORT, 'no such way from this state') WHERE OLD.state <> NEW.state AND (
        OLD.state IN ('done', 'denied', 'failed', 'cancelled')
        OR NEW.state = 'proposed'
        OR (NEW.state IN ('approved', 'denied') AND OLD.state <> 'proposed')
        OR (NEW.state IN ('offline', 'online', 'done') AND OLD.state = 'proposed')
    );
END;
CREATE TRIGGER IF NOT EXISTS terms_stay BEFORE UPDATE OF id, role, peer, terms ON session BEGIN
    SELECT RAISE(ABORT, 'what was agreed stays');
END;
CREATE TABLE IF NOT EXISTS image (
    session    TEXT NOT NULL REFERENCES session (id),
    number     INTEGER NOT NULL,
    logits     BLOB,
    at         REAL NOT NULL,
    PRIMARY KEY (session, number)
);
CREATE TRIGGER IF NOT EXISTS image_stays BEFORE UPDATE ON image BEGIN
    SELECT RAISE(ABORT, 'a result is written once');
END;
CREATE TABLE IF NOT EXISTS rate (
    peer       TEXT NOT NULL,
    phase      TEXT NOT NULL,
    per_second REAL NOT NULL,
    PRIMARY KEY (peer, phase)
);
