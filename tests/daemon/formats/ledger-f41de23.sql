
CREATE TABLE IF NOT EXISTS unit (
    id       BLOB PRIMARY KEY CHECK (typeof(id) = 'blob' AND length(id) = 16),
    peer     TEXT NOT NULL,
    model    TEXT NOT NULL,
    network  TEXT NOT NULL,
    batch    BLOB NOT NULL,
    state    TEXT NOT NULL CHECK (state IN ('making', 'ready', 'spent', 'burnt')),
    session  TEXT,
    image    INTEGER,
    opened   INTEGER NOT NULL DEFAULT 0 CHECK (opened IN (0, 1)),
    bytes    INTEGER NOT NULL DEFAULT 0,
    reason   TEXT NOT NULL DEFAULT '',
    created  REAL NOT NULL,
    changed  REAL NOT NULL,
    CHECK ((state = 'spent') = (session IS NOT NULL)),
    CHECK ((session IS NULL) = (image IS NULL)),
    CHECK (opened = 0 OR state = 'spent')
);
CREATE INDEX IF NOT EXISTS unit_by_state ON unit (state, peer, model);

CREATE TABLE IF NOT EXISTS batch (
    id       BLOB PRIMARY KEY,
    units    INTEGER NOT NULL CHECK (units > 0),
    seconds  REAL NOT NULL,
    moved    INTEGER NOT NULL
);

CREATE TABLE IF NOT EXISTS step (
    number   INTEGER PRIMARY KEY AUTOINCREMENT,
    unit     BLOB NOT NULL,
    step     TEXT NOT NULL,
    at       REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS step_by_unit ON step (unit);

CREATE TRIGGER IF NOT EXISTS unit_begins BEFORE INSERT ON unit BEGIN
    SELECT RAISE(ABORT, 'a unit begins in the state making') WHERE NEW.state <> 'making';
    SELECT RAISE(ABORT, 'a unit of this id was there before')
        WHERE EXISTS (SELECT 1 FROM step WHERE unit = NEW.id);
END;
CREATE TRIGGER IF NOT EXISTS unit_replaces_none BEFORE INSERT ON unit BEGIN
    SELECT RAISE(ABORT, 'a unit takes no other''s place')
        WHERE EXISTS (SELECT 1 FROM unit WHERE rowid = NEW.rowid OR id = NEW.id);
END;
CREATE TRIGGER IF NOT EXISTS unit_keeps_its_place BEFORE UPDATE ON unit WHEN NEW.rowid <> OLD.rowid BEGIN
    SELECT RAISE(ABORT, 'a unit takes no other''s place');
END;
CREATE TRIGGER IF NOT EXISTS unit_begun AFTER INSERT ON unit BEGIN
    INSERT INTO step (unit, step, at) VALUES (NEW.id, NEW.state, NEW.changed);
END;
CREATE TRIGGER IF NOT EXISTS unit_stays BEFORE DELETE ON unit BEGIN
    SELECT RAISE(ABORT, 'the ledger forgets no unit');
END;
CREATE TRIGGER IF NOT EXISTS unit_is_what_it_is
BEFORE UPDATE OF id, peer, model, network, batch, created ON unit BEGIN
    SELECT RAISE(ABORT, 'a unit stays what it is');
END;
CREATE TRIGGER IF NOT EXISTS unit_moves BEFORE UPDATE OF state ON unit BEGIN
    SELECT RAISE(ABORT, 'no such way from this state')
        WHERE (OLD.state || '>' || NEW.state) NOT IN
            ('making>ready', 'making>burnt', 'ready>spent', 'ready>burnt');
END;
CREATE TRIGGER IF NOT EXISTS unit_moved AFTER UPDATE OF state ON unit BEGIN
    INSERT INTO step (unit, step, at) VALUES (NEW.id, NEW.state, NEW.changed);
END;
CREATE TRIGGER IF NOT EXISTS unit_use_is_final BEFORE UPDATE OF session, image ON unit BEGIN
    SELECT RAISE(ABORT, 'a use is written once') WHERE OLD.state <> 'ready';
END;
CREATE TRIGGER IF NOT EXISTS unit_opens_once BEFORE UPDATE OF opened ON unit BEGIN
    SELECT RAISE(ABORT, 'a spent unit is opened once')
        WHERE OLD.state <> 'spent' OR OLD.opened <> 0 OR NEW.opened <> 1;
END;
CREATE TRIGGER IF NOT EXISTS unit_opened AFTER UPDATE OF opened ON unit BEGIN
    INSERT INTO step (unit, step, at) VALUES (NEW.id, 'opened', NEW.changed);
END;
CREATE TRIGGER IF NOT EXISTS step_replaces_none BEFORE INSERT ON step BEGIN
    SELECT RAISE(ABORT, 'history stays') WHERE EXISTS (SELECT 1 FROM step WHERE number = NEW.number);
END;
CREATE TRIGGER IF NOT EXISTS step_stays BEFORE DELETE ON step BEGIN
    SELECT RAISE(ABORT, 'history stays');
END;
CREATE TRIGGER IF NOT EXISTS step_is_fixed BEFORE UPDATE ON step BEGIN
    SELECT RAISE(ABORT, 'history stays');
END;
