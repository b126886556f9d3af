-- What Freshet needs of SQL Server: change data capture on the tables that it indexes, and a login that can read them and nothing else.
-- Run by the database's owner, with sqlcmd: $(cdc_password) is its variable. May be repeated. The tables themselves stand here for a database
-- that has none yet; yours are there already.
:on error exit
set nocount on;

if db_id('shop') is null
    create database shop;
go
use shop;
go
-- A snapshot reads one consistent state without a lock that writers would feel (snapshot.isolation.mode=snapshot).
if (select snapshot_isolation_state from sys.databases where name = 'shop') = 0
    alter database shop set allow_snapshot_isolation on;
go
if object_id('dbo.product') is null
    create table dbo.product (
        id bigint not null primary key,
        sku varchar(64) not null,
        name nvarchar(400) not null,
        description nvarchar(max) null,
        category_id bigint not null,
        brand_id bigint null,
        stock int not null constraint product_stock default 0,
        status varchar(32) not null constraint product_status default 'active',
        is_active bit not null constraint product_is_active default 1,
        created_at datetime2(6) not null constraint product_created_at default sysutcdatetime(),
        updated_at datetimeoffset(6) null
    );
if object_id('dbo.category') is null
    create table dbo.category (
        id bigint not null primary key, parent_id bigint null, name nvarchar(200) not null, description nvarchar(max) null
    );
if object_id('dbo.brand') is null
    create table dbo.brand (id bigint not null primary key, name nvarchar(200) not null, country nvarchar(100) null);
if object_id('dbo.price') is null
    create table dbo.price (
        id bigint not null primary key,
        product_id bigint not null,
        currency char(3) not null constraint price_currency default 'EUR',
        amount decimal(10, 2) not null,
        valid_from datetime2(6) not null
    );
if object_id('dbo.review') is null
    create table dbo.review (
        id bigint not null primary key,
        product_id bigint not null,
        rating smallint not null,
        title nvarchar(400) not null,
        body nvarchar(max) null,
        created_at datetime2(6) not null constraint review_created_at default sysutcdatetime()
    );
go
-- Debezium's mailbox: a row put here asks for an incremental snapshot, and the connector marks its chunks here.
if object_id('dbo.debezium_signal') is null
    create table dbo.debezium_signal (id varchar(64) not null primary key, type varchar(32) not null, data nvarchar(2048) null);
go

if (select is_cdc_enabled from sys.databases where name = 'shop') = 0
    exec sys.sp_cdc_enable_db;
go
-- Whoever reads the change tables has to be of this role.
if database_principal_id('cdc_reader') is null
    create role cdc_reader;
go
declare @table sysname;
declare captured cursor local for
    select name from sys.tables
    where schema_id = schema_id('dbo') and name in ('product', 'category', 'brand', 'price', 'review', 'debezium_signal')
        and object_id not in (select source_object_id from cdc.change_tables);
open captured;
fetch next from captured into @table;
while @@fetch_status = 0
begin
    exec sys.sp_cdc_enable_table
        @source_schema = 'dbo', @source_name = @table, @role_name = 'cdc_reader', @supports_net_changes = 0;
    fetch next from captured into @table;
end;
go

use master;
go
if suser_id('freshet_cdc') is null
    create login freshet_cdc with password = '$(cdc_password)', default_database = shop;
else
    alter login freshet_cdc with password = '$(cdc_password)';
-- Lets the connector tell "nothing has changed" from "the agent that captures changes has stopped". It shows no data.
grant view server state to freshet_cdc;
go
use shop;
go
if user_id('freshet_cdc') is null
    create user freshet_cdc for login freshet_cdc;
alter role cdc_reader add member freshet_cdc;
grant select on object::dbo.product to freshet_cdc;
grant select on object::dbo.category to freshet_cdc;
grant select on object::dbo.brand to freshet_cdc;
grant select on object::dbo.price to freshet_cdc;
grant select on object::dbo.review to freshet_cdc;
grant select on schema::cdc to freshet_cdc;
grant select, insert, delete on object::dbo.debezium_signal to freshet_cdc;
grant view database state to freshet_cdc;
go
