-- The catalogue: what is true about tenants, policies, jobs, revisions and aliases.
-- Keys are uuid version 7, digests 32 raw bytes, states enums; every time is this server's clock.

create type job_state as enum ('accepted', 'running', 'completed', 'failed', 'cancelled');
create type revision_state as enum (
    'pending', 'exporting', 'exported', 'evaluating', 'eligible', 'rejected', 'quarantined', 'retired', 'failed',
    'deleted'
);

create table tenants (
    tenant text primary key check (tenant ~ '^[a-z0-9_-]{1,63}$'),
    weight real not null default 1 check (weight > 0),
    created_at timestamptz not null default clock_timestamp()
);

create table base_models (
    base text primary key check (base ~ '^[a-z0-9_-]{1,63}$'),
    digest bytea not null check (octet_length(digest) = 32),
    locator text not null,
    modules jsonb not null,
    config jsonb not null,
    created_at timestamptz not null default clock_timestamp()
);

create table policies (
    policy_id uuid primary key default uuidv7(),
    tenant text not null references tenants,
    name text not null check (name ~ '^[a-z0-9_-]{1,63}$'),
    base text not null references base_models,
    next_number int not null default 1,
    created_at timestamptz not null default clock_timestamp(),
    unique (tenant, name)
) with (fillfactor = 90);

create table jobs (
    job_id uuid primary key default uuidv7(),
    tenant text not null references tenants,
    policy_id uuid not null references policies,
    base text not null references base_models,
    spec jsonb not null,
    idempotency_key text,
    request_id text not null,
    request_hash bytea not null check (octet_length(request_hash) = 32),
    state job_state not null default 'accepted',
    fence int not null default 0,
    tries int not null default 0,
    owner text,
    lease_until timestamptz,
    cancel_requested boolean not null default false,
    cancelled_by text not null default '',
    progress jsonb,
    step int not null default 0,
    steps int not null default 0,
    tokens bigint not null default 0,
    final_loss double precision,
    cause jsonb,
    hint_event_id uuid not null default uuidv7(),
    created_at timestamptz not null default clock_timestamp(),
    started_at timestamptz,
    changed_at timestamptz not null default clock_timestamp(),
    announced_at timestamptz not null default clock_timestamp(),
    check (state <> 'running' or lease_until is not null)
) with (fillfactor = 80);

create unique index jobs_idempotency on jobs (tenant, idempotency_key) where idempotency_key is not null;
-- A message that is delivered twice has the same id and the same body. The body counts too, because the id of a bare
-- message is <stream>-<seq>, and a bus that was lost and made anew starts counting again.
create unique index jobs_request on jobs (tenant, request_id, request_hash);
create unique index jobs_one_running on jobs (policy_id) where state = 'running';
create index jobs_due on jobs (base, tenant, job_id) where state in ('accepted', 'running');
create index jobs_open on jobs (lease_until) where state in ('accepted', 'running');
create index jobs_of_policy on jobs (policy_id, job_id);
create index jobs_of_tenant on jobs (tenant, job_id);

create table checkpoints (
    checkpoint_id uuid primary key default uuidv7(),
    job_id uuid not null references jobs,
    fence int not null,
    step int not null,
    key text not null,
    sha256 bytea not null check (octet_length(sha256) = 32),
    checkpoint_bytes bigint not null,
    files_gone boolean not null default false,
    hint_event_id uuid not null default uuidv7(),
    created_at timestamptz not null default clock_timestamp(),
    unique (job_id, step)
);

create index checkpoints_key on checkpoints (key);

create table revisions (
    revision_id uuid primary key default uuidv7(),
    tenant text not null references tenants,
    policy_id uuid not null references policies,
    base text not null references base_models,
    job_id uuid references jobs,
    checkpoint_id uuid references checkpoints,
    step int not null default 0,
    state revision_state not null,
    fence int not null default 0,
    tries int not null default 0,
    owner text,
    lease_until timestamptz,
    number int,
    digest bytea check (octet_length(digest) = 32),
    rank int,
    adapter_bytes bigint,
    export_ms real,
    manifest jsonb,
    source text not null default '',
    quarantined_from revision_state,
    reason text not null default '',
    waived_by text,
    cause jsonb,
    hint_event_id uuid not null default uuidv7(),
    created_at timestamptz not null default clock_timestamp(),
    changed_at timestamptz not null default clock_timestamp(),
    announced_at timestamptz not null default clock_timestamp(),
    check (state not in ('exporting', 'evaluating') or lease_until is not null),
    check (state in ('pending', 'exporting', 'failed') or (digest is not null and number is not null))
) with (fillfactor = 85);

create unique index revisions_number on revisions (policy_id, number) where number is not null;
create unique index revisions_job_step on revisions (job_id, step) where job_id is not null;
create index revisions_step on revisions (policy_id, step, number) where number is not null;
create index revisions_of_policy on revisions (policy_id, revision_id);
create index revisions_digest on revisions (digest) where digest is not null;
create index revisions_export_due on revisions (tenant, revision_id) where state in ('pending', 'exporting');
create index revisions_evaluation_due on revisions (tenant, revision_id) where state in ('exported', 'evaluating');
create index revisions_retired on revisions (changed_at) where state = 'retired';

create table aliases (
    policy_id uuid not null references policies,
    alias text not null check (alias ~ '^[a-z0-9_-]{1,63}$'),
    revision_id uuid not null references revisions,
    version bigint not null default 1,
    frozen boolean not null default false,
    moved_at timestamptz not null default clock_timestamp(),
    primary key (policy_id, alias)
) with (fillfactor = 85);

create index aliases_revision on aliases (revision_id);

create table alias_history (
    policy_id uuid not null,
    alias text not null,
    version bigint not null,
    revision_id uuid not null references revisions,
    previous_revision_id uuid,
    frozen boolean not null,
    actor text not null,
    reason text not null,
    moved_at timestamptz not null default clock_timestamp(),
    primary key (policy_id, alias, version),
    foreign key (policy_id, alias) references aliases
);

create table evaluations (
    evaluation_id uuid primary key default uuidv7(),
    revision_id uuid not null references revisions,
    fence int not null,
    suite text not null,
    passed boolean not null,
    summary text not null default '',
    scores jsonb not null,
    rests_on jsonb not null,
    report_key text,
    created_at timestamptz not null default clock_timestamp()
);

create index evaluations_revision on evaluations (revision_id, evaluation_id);

create table api_keys (
    key_id text primary key,
    tenant text not null references tenants,
    secret_hash bytea not null check (octet_length(secret_hash) = 32),
    scopes text[] not null check (scopes <@ array['train', 'read', 'infer', 'promote', 'admin']),
    label text not null default '',
    expires_at timestamptz,
    revoked_at timestamptz,
    created_at timestamptz not null default clock_timestamp()
);

create index api_keys_tenant on api_keys (tenant);

create table datasets (
    tenant text not null references tenants,
    digest bytea not null check (octet_length(digest) = 32),
    rows int not null,
    bytes bigint not null,
    key text not null,
    created_at timestamptz not null default clock_timestamp(),
    primary key (tenant, digest)
);

create index datasets_key on datasets (key);

create table usage (
    hour timestamptz not null,
    tenant text not null,
    model text not null,
    digest bytea not null default ''::bytea,
    requests bigint not null default 0,
    prompt_tokens bigint not null default 0,
    completion_tokens bigint not null default 0,
    primary key (hour, tenant, model, digest)
);

create table outbox (
    id bigint generated always as identity primary key,
    service text not null,
    event_id uuid not null,
    subject text not null,
    headers jsonb not null default '{}',
    payload bytea not null,
    created_at timestamptz not null default clock_timestamp()
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

create index outbox_service on outbox (service, id);

create table inbox (
    consumer text not null,
    event_id text not null,
    received_at timestamptz not null default clock_timestamp(),
    primary key (consumer, event_id)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000);

create index inbox_received on inbox (received_at);

create table leaders (
    base text primary key,
    owner text not null,
    epoch bigint not null,
    taken_at timestamptz not null default clock_timestamp()
);

-- Waking the relay: one notice per statement, however many rows it wrote.
create function announce_outbox() returns trigger language plpgsql as $$
begin
    perform pg_notify('openmint_outbox', service) from (select distinct service from added) as services;
    return null;
end
$$;

create trigger outbox_announce after insert on outbox
    referencing new table as added for each statement execute function announce_outbox();

-- The two state machines. openmint/catalog/transitions.py holds the same table; a test compares the two.
create table transitions (
    machine text not null check (machine in ('job', 'revision')),
    from_state text not null,
    to_state text not null,
    primary key (machine, from_state, to_state)
);

insert into transitions (machine, from_state, to_state) values
    ('job', '', 'accepted'),
    ('job', 'accepted', 'running'),
    ('job', 'accepted', 'cancelled'),
    ('job', 'running', 'running'),
    ('job', 'running', 'completed'),
    ('job', 'running', 'failed'),
    ('job', 'running', 'cancelled'),
    ('revision', '', 'pending'),
    ('revision', '', 'exporting'),
    ('revision', 'pending', 'exporting'),
    ('revision', 'exporting', 'exporting'),
    ('revision', 'exporting', 'exported'),
    ('revision', 'exporting', 'failed'),
    ('revision', 'exported', 'evaluating'),
    ('revision', 'exported', 'quarantined'),
    ('revision', 'evaluating', 'evaluating'),
    ('revision', 'evaluating', 'eligible'),
    ('revision', 'evaluating', 'rejected'),
    ('revision', 'evaluating', 'quarantined'),
    ('revision', 'rejected', 'eligible'),
    ('revision', 'rejected', 'quarantined'),
    ('revision', 'rejected', 'retired'),
    ('revision', 'eligible', 'quarantined'),
    ('revision', 'eligible', 'retired'),
    ('revision', 'quarantined', 'exported'),
    ('revision', 'quarantined', 'rejected'),
    ('revision', 'quarantined', 'eligible'),
    ('revision', 'quarantined', 'retired'),
    ('revision', 'retired', 'deleted');

-- True only in sessions that the chaos run opens on purpose, to show what fencing prevents.
create function fencing_is_off() returns boolean language sql stable as $$
    select coalesce(current_setting('openmint.unsafe_no_fencing', true), '') = 'on'
$$;

create function guard_transition() returns trigger language plpgsql as $$
declare
    former text := case when tg_op = 'INSERT' then '' else old.state::text end;
begin
    if fencing_is_off() then
        return new;
    end if;
    if (tg_op = 'INSERT' or new.state is distinct from old.state) and not exists (
        select from transitions
        where machine = tg_argv[0] and from_state = former and to_state = new.state::text
    ) then
        raise exception '% may not go from % to %', tg_argv[0], coalesce(nullif(former, ''), 'nothing'), new.state
            using errcode = 'OM422';
    end if;
    if tg_op = 'UPDATE' and new.fence < old.fence then
        raise exception 'the fence of a % may not fall from % to %', tg_argv[0], old.fence, new.fence
            using errcode = 'OM422';
    end if;
    return new;
end
$$;

create trigger jobs_guard_insert before insert on jobs
    for each row execute function guard_transition('job');
create trigger jobs_guard_update before update of state, fence on jobs
    for each row execute function guard_transition('job');
create trigger revisions_guard_insert before insert on revisions
    for each row execute function guard_transition('revision');
create trigger revisions_guard_update before update of state, fence on revisions
    for each row execute function guard_transition('revision');

-- A digest, once given, stays: a revision is never overwritten.
create function guard_digest() returns trigger language plpgsql as $$
begin
    if old.digest is not null and (new.digest, new.number) is distinct from (old.digest, old.number)
        and not fencing_is_off()
    then
        raise exception 'revision % already has its digest', old.revision_id using errcode = 'OM422';
    end if;
    return new;
end
$$;

create trigger revisions_guard_digest before update of digest, number on revisions
    for each row execute function guard_digest();

-- The only way to move an alias. expected_version null means whatever it is now; 0 means it must not exist yet.
-- Moving to where it points already changes nothing, so that an event handled twice moves once.
create function move_alias(
    in_policy uuid, in_alias text, in_revision uuid, expected_version bigint, in_actor text, in_reason text
) returns table (changed boolean, alias_version bigint, previous uuid, is_frozen boolean) language plpgsql as $$
declare
    revision record;
    present record;
begin
    select r.state, r.policy_id into revision from revisions r where r.revision_id = in_revision for share;
    if not found or revision.policy_id <> in_policy then
        raise exception 'the policy has no revision %', in_revision using errcode = 'OM404';
    end if;
    if revision.state <> 'eligible' then
        raise exception 'revision % is %, and an alias may only move to an eligible one', in_revision, revision.state
            using errcode = 'OM409';
    end if;
    select a.revision_id, a.version, a.frozen into present
        from aliases a where a.policy_id = in_policy and a.alias = in_alias for update;
    if not found then
        if coalesce(expected_version, 0) <> 0 then
            raise exception 'alias % does not exist yet, version % was expected', in_alias, expected_version
                using errcode = 'OM410';
        end if;
        insert into aliases (policy_id, alias, revision_id) values (in_policy, in_alias, in_revision)
            on conflict do nothing;
        if found then
            insert into alias_history (policy_id, alias, version, revision_id, frozen, actor, reason)
                values (in_policy, in_alias, 1, in_revision, false, in_actor, in_reason);
            return query select true, 1::bigint, null::uuid, false;
            return;
        end if;
        -- Somebody else made it between the two statements: from here on it is an ordinary move.
        select a.revision_id, a.version, a.frozen into present
            from aliases a where a.policy_id = in_policy and a.alias = in_alias for update;
    end if;
    if expected_version is not null and expected_version <> present.version then
        raise exception 'alias % is at version %, version % was expected', in_alias, present.version, expected_version
            using errcode = 'OM410';
    end if;
    if present.frozen then
        raise exception 'alias % is frozen at version %', in_alias, present.version using errcode = 'OM423';
    end if;
    if present.revision_id = in_revision then
        return query select false, present.version, present.revision_id, false;
        return;
    end if;
    update aliases a set revision_id = in_revision, version = present.version + 1, moved_at = clock_timestamp()
        where a.policy_id = in_policy and a.alias = in_alias;
    insert into alias_history
        (policy_id, alias, version, revision_id, previous_revision_id, frozen, actor, reason)
        values (in_policy, in_alias, present.version + 1, in_revision, present.revision_id, false, in_actor, in_reason);
    return query select true, present.version + 1, present.revision_id, false;
end
$$;

create function set_alias_frozen(
    in_policy uuid, in_alias text, in_frozen boolean, expected_version bigint, in_actor text, in_reason text
) returns table (changed boolean, alias_version bigint, revision uuid) language plpgsql as $$
declare
    present record;
begin
    select a.revision_id, a.version, a.frozen into present
        from aliases a where a.policy_id = in_policy and a.alias = in_alias for update;
    if not found then
        raise exception 'the policy has no alias %', in_alias using errcode = 'OM404';
    end if;
    if expected_version is not null and expected_version <> present.version then
        raise exception 'alias % is at version %, version % was expected', in_alias, present.version, expected_version
            using errcode = 'OM410';
    end if;
    if present.frozen = in_frozen then
        return query select false, present.version, present.revision_id;
        return;
    end if;
    update aliases a set frozen = in_frozen, version = present.version + 1, moved_at = clock_timestamp()
        where a.policy_id = in_policy and a.alias = in_alias;
    insert into alias_history
        (policy_id, alias, version, revision_id, previous_revision_id, frozen, actor, reason)
        values (in_policy, in_alias, present.version + 1, present.revision_id, present.revision_id, in_frozen,
                in_actor, in_reason);
    return query select true, present.version + 1, present.revision_id;
end
$$;
