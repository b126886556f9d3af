-- What Freshet needs of SQL Server: change data capture on the tables that it indexes, and a login that can read them and nothing else.
-- Run by the database's owner, with sqlcmd: $(cdc_password) is its variable. May be repeated. The table itself stands here for a database
-- that has none yet; yours is there already.
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
        brand nvarchar(200) null,
        category nvarchar(200) not null,
        list_price decimal(10, 2) not null,
        currency char(3) not null constraint product_currency default 'EUR',
        stock int not null constraint product_stock default 0,
        status varchar(32) not null constraint product_status default 'active',
        is_active bit not null constraint product_is_active default 1,
        created_at datetime2(6) not null constraint product_created_at default sysutcdatetime(),
        updated_at datetimeoffset null
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
if not exists (select 1 from cdc.change_tables where source_object_id = object_id('dbo.product'))
    exec sys.sp_cdc_enable_table
        @source_schema = 'dbo', @source_name = 'product', @role_name = 'cdc_reader', @supports_net_changes = 0;
if not exists (select 1 from cdc.change_tables where source_object_id = object_id('dbo.debezium_signal'))
    exec sys.sp_cdc_enable_table
        @source_schema = 'dbo', @source_name = 'debezium_signal', @role_name = 'cdc_reader', @supports_net_changes = 0;
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
grant select on schema::cdc to freshet_cdc;
grant select, insert, delete on object::dbo.debezium_signal to freshet_cdc;
grant view database state to freshet_cdc;
go
