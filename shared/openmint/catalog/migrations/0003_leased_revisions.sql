-- What is under way: counted at every claim, and looked through by the keeper. Never more rows than workers.
create index revisions_leased on revisions (state, lease_until) where state in ('exporting', 'evaluating');
create index jobs_leased on jobs (base, lease_until) where state = 'running';
