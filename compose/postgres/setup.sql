-- What Freshet needs of PostgreSQL (wal_level=logical, a setting of the server): a publication of the tables that it indexes, and a role that
-- can read them and replicate, and nothing else. Run with psql by the tables' owner: -v cdc_password=... is its variable. May be repeated; a
-- table that is not there yet is left out until the next time.
\set ON_ERROR_STOP on

select 'create role freshet_cdc login replication' where not exists (select from pg_roles where rolname = 'freshet_cdc') \gexec
alter role freshet_cdc login replication password :'cdc_password';

-- Debezium's mailbox: a row put here asks for an incremental snapshot, and the connector marks its chunks here.
create table if not exists public.debezium_signal (id varchar(64) primary key, type varchar(32) not null, data varchar(2048));

-- A publication made here and not by the connector, which would have to own the tables for it.
select 'create publication freshet' where not exists (select from pg_publication where pubname = 'freshet') \gexec
select format('alter publication freshet add table public.%I', tablename) from pg_tables
where schemaname = 'public' and tablename in ('product', 'category', 'brand', 'price', 'review', 'debezium_signal')
    and not exists (select from pg_publication_tables p where p.pubname = 'freshet' and p.schemaname = 'public' and p.tablename = pg_tables.tablename) \gexec

grant usage on schema public to freshet_cdc;
select format('grant select on public.%I to freshet_cdc', tablename) from pg_tables
where schemaname = 'public' and tablename in ('product', 'category', 'brand', 'price', 'review') \gexec
grant select, insert, delete on public.debezium_signal to freshet_cdc;
