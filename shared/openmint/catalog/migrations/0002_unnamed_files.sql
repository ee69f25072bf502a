-- Files in the store that no row names, and since when. A file is written before the row that names it, so a young one
-- may be a commit under way; what stays unnamed for a day is what a worker left behind when it died.
create table unnamed_files (
    key text primary key,
    first_seen_at timestamptz not null default clock_timestamp()
);

create index unnamed_files_seen on unnamed_files (first_seen_at);

-- The quota on open jobs is checked at each acceptance.
create index jobs_open_of_tenant on jobs (tenant) where state in ('accepted', 'running');
