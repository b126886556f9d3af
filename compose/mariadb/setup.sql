-- What Freshet needs of MariaDB (log_bin, binlog_format=ROW, binlog_row_image=FULL: settings of the server): a user that can read the tables
-- that it indexes and the binlog. Run with the mariadb client by an administrator, after `set @cdc_password = '...'`. May be repeated.
create table if not exists shop.debezium_signal (id varchar(64) primary key, type varchar(32) not null, data varchar(2048));

-- An anonymous user of localhost would stand before 'freshet_cdc'@'%' there: so both are made.
execute immediate concat("create user if not exists 'freshet_cdc'@'%' identified by ", quote(@cdc_password));
execute immediate concat("create user if not exists 'freshet_cdc'@'localhost' identified by ", quote(@cdc_password));

-- These four are of the whole server, there is no smaller grant of them; only the fifth shows data.
grant replication slave, binlog monitor, reload, show databases on *.* to 'freshet_cdc'@'%', 'freshet_cdc'@'localhost';
grant select, lock tables on shop.* to 'freshet_cdc'@'%', 'freshet_cdc'@'localhost';
grant insert, delete on shop.debezium_signal to 'freshet_cdc'@'%', 'freshet_cdc'@'localhost';
