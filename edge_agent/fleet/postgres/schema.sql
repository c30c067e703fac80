-- The tables of a fleet's store, schema 1. `edge-agent fleet init` runs this as the administrator, in one
-- transaction, with the schema that has the extension `vector` in the search path.
--
-- Every key begins with `site`, and nothing refers to a row of another site, so that a cluster distributes
-- all tables by that column. `version` orders the changes of a site: a writer locks the row of the site first,
-- so that versions follow the order of commits, and a reader never skips one.

CREATE SCHEMA edge_agent;
SET LOCAL search_path = edge_agent, :vector_schema;

CREATE TABLE meta (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    schema   integer NOT NULL
);
INSERT INTO meta (schema) VALUES (1);

CREATE TABLE site (
    site           text PRIMARY KEY,
    space          text NOT NULL,      -- of the embeddings: model, preprocessing, size
    dimension      integer NOT NULL CHECK (dimension BETWEEN 1 AND 16000),
    ttl_s          double precision,   -- time to live of people; null: for ever
    enrolled_ttl_s double precision,
    version        bigint NOT NULL DEFAULT 0,
    horizon        bigint NOT NULL DEFAULT 0,   -- tombstones up to here are gone
    people         bigint NOT NULL DEFAULT 0,
    exemplars      bigint NOT NULL DEFAULT 0
);

CREATE TABLE device (
    site    text NOT NULL,
    device  text NOT NULL,
    role    name NOT NULL UNIQUE,      -- logs in as this
    mark    bigint NOT NULL DEFAULT 0, -- has applied everything up to this version
    receipt text,
    seen    double precision NOT NULL DEFAULT 0,
    gone    boolean NOT NULL DEFAULT false,
    PRIMARY KEY (site, device)
);

CREATE TABLE person (
    site       text NOT NULL,
    id         text NOT NULL,
    created    bigint NOT NULL,
    root       text NOT NULL,
    kind       text NOT NULL,
    name       text,
    named      bigint NOT NULL,        -- version at which the name was set
    ttl_s      double precision,
    ttl_set    bigint NOT NULL,
    first_seen double precision NOT NULL,  -- Unix seconds of this server's clock, as everywhere
    last_seen  double precision NOT NULL,
    device     text NOT NULL,
    camera     text NOT NULL,
    forgotten  text,                   -- why it was erased: a tombstone, of which only the id is left
    version    bigint NOT NULL,
    PRIMARY KEY (site, id)
);
CREATE INDEX person_version ON person (site, version);
CREATE INDEX person_root ON person (site, root);
CREATE INDEX person_name ON person (site, name) WHERE name IS NOT NULL;
CREATE INDEX person_seen ON person (site, last_seen) WHERE forgotten IS NULL;
CREATE INDEX person_forgotten ON person (site, last_seen) WHERE forgotten IS NOT NULL;

CREATE TABLE contribution (            -- everything that one device shares of one id
    site    text NOT NULL,
    id      text NOT NULL,
    device  text NOT NULL,
    digest  bytea NOT NULL,
    version bigint NOT NULL,
    PRIMARY KEY (site, id, device)
);
CREATE INDEX contribution_version ON contribution (site, version);

CREATE TABLE exemplar (
    site      text NOT NULL,
    id        text NOT NULL,
    device    text NOT NULL,
    number    smallint NOT NULL,
    camera    text NOT NULL,
    epoch     bigint NOT NULL,
    quality   double precision NOT NULL,
    embedding vector NOT NULL,         -- sites have different dimensions
    PRIMARY KEY (site, id, device, number)
) WITH (toast_tuple_target = 8160);    -- in the row: a search reads thousands

-- ANALYZE keeps samples of values, also of rows that are deleted later.
ALTER TABLE person ALTER COLUMN name SET STATISTICS 0;
ALTER TABLE exemplar ALTER COLUMN embedding SET STATISTICS 0;

CREATE TABLE apart (
    site    text NOT NULL,
    one     text NOT NULL,
    other   text NOT NULL,
    reason  text NOT NULL,
    version bigint NOT NULL,
    PRIMARY KEY (site, one, other)
);
CREATE INDEX apart_version ON apart (site, version);
CREATE INDEX apart_other ON apart (site, other);

CREATE TABLE camera_mean (
    site    text NOT NULL,
    device  text NOT NULL,
    camera  text NOT NULL,
    epoch   bigint NOT NULL,
    people  double precision NOT NULL,
    total   bytea NOT NULL,            -- float64, little endian
    version bigint NOT NULL,
    PRIMARY KEY (site, device, camera, epoch)
);
CREATE INDEX camera_mean_version ON camera_mean (site, version);

CREATE TABLE conflict (                -- probably one person, but with two names
    site  text NOT NULL,
    one   text NOT NULL,
    other text NOT NULL,
    PRIMARY KEY (site, one, other)
);

CREATE TABLE lease (
    site   text NOT NULL,
    name   text NOT NULL,
    device text NOT NULL,
    until  double precision NOT NULL,
    PRIMARY KEY (site, name)
);

-- Rights. A role belongs to one device of one site. These functions read `device` as the owner, since the
-- policy of that table needs them.

CREATE FUNCTION own_site() RETURNS text LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = edge_agent, pg_temp
    RETURN (SELECT site FROM edge_agent.device WHERE role = session_user AND NOT gone);

CREATE FUNCTION own_device() RETURNS text LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = edge_agent, pg_temp
    RETURN (SELECT device FROM edge_agent.device WHERE role = session_user AND NOT gone);

CREATE FUNCTION own_row() RETURNS device LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = edge_agent, pg_temp
    BEGIN ATOMIC SELECT d FROM edge_agent.device d WHERE d.role = session_user; END;

CREATE FUNCTION keep_erased() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.forgotten IS NOT NULL AND (NEW.forgotten IS NULL OR NEW.name IS NOT NULL) THEN
        RAISE EXCEPTION 'an erased person stays erased' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER keep_erased BEFORE UPDATE ON person FOR EACH ROW
    WHEN (OLD.forgotten IS NOT NULL) EXECUTE FUNCTION keep_erased();

CREATE FUNCTION only_forward() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'versions of a site only grow' USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER only_forward BEFORE UPDATE ON site FOR EACH ROW
    WHEN (NEW.version < OLD.version OR NEW.horizon < OLD.horizon OR NEW.horizon > NEW.version)
    EXECUTE FUNCTION only_forward();

ALTER TABLE site ENABLE ROW LEVEL SECURITY;
ALTER TABLE device ENABLE ROW LEVEL SECURITY;
ALTER TABLE person ENABLE ROW LEVEL SECURITY;
ALTER TABLE contribution ENABLE ROW LEVEL SECURITY;
ALTER TABLE exemplar ENABLE ROW LEVEL SECURITY;
ALTER TABLE apart ENABLE ROW LEVEL SECURITY;
ALTER TABLE camera_mean ENABLE ROW LEVEL SECURITY;
ALTER TABLE conflict ENABLE ROW LEVEL SECURITY;
ALTER TABLE lease ENABLE ROW LEVEL SECURITY;

-- `(SELECT ...)`: once a statement, not once a row.
CREATE POLICY own ON site USING (site = (SELECT own_site()));
CREATE POLICY own ON person USING (site = (SELECT own_site()));
CREATE POLICY own ON apart USING (site = (SELECT own_site()));
CREATE POLICY own ON conflict USING (site = (SELECT own_site()));

CREATE POLICY seen ON device FOR SELECT USING (site = (SELECT own_site()));
CREATE POLICY own ON device FOR UPDATE
    USING (site = (SELECT own_site()) AND device = (SELECT own_device()));

CREATE POLICY seen ON contribution FOR SELECT USING (site = (SELECT own_site()));
CREATE POLICY own ON contribution
    USING (site = (SELECT own_site()) AND device = (SELECT own_device()));
CREATE POLICY of_erased ON contribution FOR DELETE USING (site = (SELECT own_site()) AND EXISTS (
    SELECT 1 FROM person p
    WHERE p.site = contribution.site AND p.id = contribution.id AND p.forgotten IS NOT NULL));

CREATE POLICY ended ON contribution FOR DELETE
    USING (site = (SELECT own_site()) AND digest = sha256(''));   -- nothing is left of it

CREATE POLICY seen ON exemplar FOR SELECT USING (site = (SELECT own_site()));
CREATE POLICY own ON exemplar
    USING (site = (SELECT own_site()) AND device = (SELECT own_device()));
CREATE POLICY of_erased ON exemplar FOR DELETE USING (site = (SELECT own_site()) AND EXISTS (
    SELECT 1 FROM person p
    WHERE p.site = exemplar.site AND p.id = exemplar.id AND p.forgotten IS NOT NULL));

CREATE POLICY not_of_erased ON exemplar AS RESTRICTIVE FOR INSERT WITH CHECK (NOT EXISTS (
    SELECT 1 FROM person p
    WHERE p.site = exemplar.site AND p.id = exemplar.id AND p.forgotten IS NOT NULL));

CREATE POLICY seen ON camera_mean FOR SELECT USING (site = (SELECT own_site()));
CREATE POLICY own ON camera_mean
    USING (site = (SELECT own_site()) AND device = (SELECT own_device()));

CREATE POLICY seen ON lease FOR SELECT USING (site = (SELECT own_site()));
CREATE POLICY free ON lease
    USING (site = (SELECT own_site())
        AND (device = (SELECT own_device()) OR until < extract(epoch FROM clock_timestamp())))
    WITH CHECK (site = (SELECT own_site()) AND device = (SELECT own_device()));

GRANT USAGE ON SCHEMA edge_agent TO edge_agent_device;
GRANT SELECT ON ALL TABLES IN SCHEMA edge_agent TO edge_agent_device;
GRANT UPDATE (version, horizon, people, exemplars) ON site TO edge_agent_device;
GRANT UPDATE (mark, receipt, seen, gone) ON device TO edge_agent_device;
GRANT INSERT, UPDATE, DELETE ON person, contribution, exemplar, apart, camera_mean, conflict, lease
    TO edge_agent_device;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA edge_agent FROM PUBLIC;
GRANT EXECUTE ON FUNCTION own_site(), own_device(), own_row() TO edge_agent_device;
