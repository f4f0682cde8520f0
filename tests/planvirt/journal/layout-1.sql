-- A journal of layout 1, written by hand as planvirt 0.1.0 wrote it on SQLite: one run was kept, and another one's process
-- was killed. PostgreSQL needs SERIAL for transitions.id, which the test puts there.

CREATE TABLE layout (
    version INTEGER NOT NULL,
    PRIMARY KEY (version)
);

INSERT INTO layout VALUES (1);

CREATE TABLE runs (
    id VARCHAR(64) NOT NULL,
    kind VARCHAR(16) NOT NULL,
    "plan" VARCHAR(64) NOT NULL,
    path TEXT NOT NULL,
    text TEXT NOT NULL,
    hash VARCHAR(64) NOT NULL,
    "commit" VARCHAR(64),
    inputs JSON NOT NULL,
    on_failure VARCHAR(16) NOT NULL,
    parallel JSON NOT NULL,
    state VARCHAR(24) NOT NULL,
    error JSON,
    flow_run_id VARCHAR(64),
    owner TEXT NOT NULL,
    token VARCHAR(32) NOT NULL,
    lease_until FLOAT NOT NULL,
    created FLOAT NOT NULL,
    started FLOAT,
    ended FLOAT,
    PRIMARY KEY (id)
);

CREATE INDEX ix_runs_plan ON runs ("plan");

CREATE INDEX ix_runs_state ON runs (state);

CREATE TABLE steps (
    run VARCHAR(64) NOT NULL,
    id VARCHAR(160) NOT NULL,
    position INTEGER NOT NULL,
    action VARCHAR(32) NOT NULL,
    instance VARCHAR(64) NOT NULL,
    uuid VARCHAR(36) NOT NULL,
    host VARCHAR(64) NOT NULL,
    operation VARCHAR(64),
    needs JSON NOT NULL,
    final BOOLEAN NOT NULL,
    decided JSON NOT NULL,
    state VARCHAR(16) NOT NULL,
    phase TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    arguments JSON NOT NULL,
    undo JSON NOT NULL,
    outputs JSON NOT NULL,
    error JSON,
    undo_error JSON,
    started FLOAT,
    ended FLOAT,
    PRIMARY KEY (run, id),
    FOREIGN KEY (run) REFERENCES runs (id)
);

CREATE INDEX steps_by_instance ON steps (uuid);

CREATE TABLE transitions (
    id INTEGER NOT NULL,
    run VARCHAR(64) NOT NULL,
    step VARCHAR(160),
    "before" VARCHAR(24) NOT NULL,
    "after" VARCHAR(24) NOT NULL,
    at FLOAT NOT NULL,
    who TEXT NOT NULL,
    why TEXT NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY (run) REFERENCES runs (id)
);

CREATE INDEX transitions_by_run ON transitions (run, id);

CREATE TABLE claims (
    uuid VARCHAR(36) NOT NULL,
    instance VARCHAR(64) NOT NULL,
    host VARCHAR(64) NOT NULL,
    run VARCHAR(64) NOT NULL,
    PRIMARY KEY (uuid),
    FOREIGN KEY (run) REFERENCES runs (id)
);

CREATE INDEX ix_claims_run ON claims (run);

INSERT INTO runs VALUES (
    '20261101-030000-aaaaaa', 'run', 'shop', 'plans/shop.yaml', 'planvirt: 1', 'abc', '1f2e3d', '{"n": 2}', 'keep',
    '{"image": 2}', 'kept', '{"brief": "cannot stop web-1", "details": "it hangs", "resolution": ""}', 'flow-1',
    'me@here:1', '', 0.0, 1000.0, 1001.0, 1009.0
);

INSERT INTO runs VALUES (
    '20261102-030000-bbbbbb', 'run', 'shop', 'plans/shop.yaml', 'planvirt: 1', 'abc', NULL, '{}', 'rollback',
    '{}', 'running', NULL, NULL, 'me@here:2', 'sometoken', 2060.0, 2000.0, 2001.0, NULL
);

INSERT INTO steps VALUES (
    '20261101-030000-aaaaaa', 'stop.web-1', 0, 'stop', 'web-1', 'uuid-web-1', 'kvm1', 'night', '[]', '0', '{"grace": 60.0}',
    'failed', 'shutdown', 3, '{}', '{"was": "running"}', '{}', '{"brief": "cannot stop web-1"}', NULL, 1001.0, 1009.0
);

INSERT INTO steps VALUES (
    '20261102-030000-bbbbbb', 'launch.web-2', 0, 'launch', 'web-2', 'uuid-web-2', 'kvm1', NULL, '["a", "b"]', '1', '{}',
    'doing', 'define', 1, '{"memory": 1024}', '{"volumes": ["v1"]}', '{}', NULL, NULL, 2001.0, NULL
);

INSERT INTO transitions (run, step, "before", "after", at, who, why) VALUES
    ('20261101-030000-aaaaaa', NULL, '', 'pending', 1000.0, 'me@here:1', 'planned');

INSERT INTO transitions (run, step, "before", "after", at, who, why) VALUES
    ('20261102-030000-bbbbbb', 'launch.web-2', 'doing', 'doing', 2002.0, 'me@here:2', 'define');

INSERT INTO claims VALUES ('uuid-web-2', 'web-2', 'kvm1', '20261102-030000-bbbbbb');
