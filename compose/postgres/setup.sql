-- What Freshet needs of PostgreSQL (wal_level=logical, a setting of the server): a publication of the tables that it indexes, and a role that
-- can read them and replicate, and nothing else. Run with psql by the tables' owner: -v cdc_password=... is its variable. May be repeated.
\set ON_ERROR_STOP on

select 'create role freshet_cdc login replication' where not exists (select from pg_roles where rolname = 'freshet_cdc') \gexec
alter role freshet_cdc login replication password :'cdc_password';

-- Debezium's mailbox: a row put here asks for an incremental snapshot, and the connector marks its chunks here.
create table if not exists public.debezium_signal (id varchar(64) primary key, type varchar(32) not null, data varchar(2048));

-- A publication made here and not by the connector, which would have to own the tables for it.
select 'create publication freshet for table public.product, public.debezium_signal'
    where not exists (select from pg_publication where pubname = 'freshet') \gexec

grant usage on schema public to freshet_cdc;
grant select on public.product to freshet_cdc;
grant select, insert, delete on public.debezium_signal to freshet_cdc;
