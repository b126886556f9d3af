-- MariaDB's part of the end-to-end test: the types that PostgreSQL does not have, at their edges.
create database shop character set utf8mb4;
use shop;
create table product (
    id bigint primary key, big bigint unsigned, name varchar(100) not null, body text, price decimal(20, 6) not null,
    wide decimal(65, 30), f float, d double, at datetime(6), ts timestamp(3) null, d1 date, t1 time(6), y1 year, e1 enum('a', 'b b', 'c'),
    s1 set('x', 'y', 'z'), b1 bit(1), b10 bit(10), j json, bin varbinary(16), bl blob, ti tinyint, me mediumint
);
set time_zone = '+00:00';
insert into product
select
    seq, if(seq % 7 = 1, 18446744073709551615, if(seq % 7 = 0, null, seq)), concat('lamp no. ', seq % 97),
    if(seq % 3 = 0, null, concat('Grüße aus München 漢字 🚴 "quoted", \\back\\slash\n new line\ttab ', seq % 13)), seq * 1.234567,
    if(seq % 7 = 1, 99999999999999999999999999999999999.123456789012345678901234567891, if(seq % 7 = 0, null, -seq / 7)),
    if(seq % 7 = 1, 3.4e38, if(seq % 7 = 0, null, seq / 3e0)), if(seq % 7 = 1, 1e-300, if(seq % 7 = 0, null, seq / 3e0)), if(seq % 7 = 1, '9999-12-31 23:59:59.999999', '2026-01-02 03:04:05.678901' + interval seq minute),
    if(seq % 7 = 0, null, '2026-01-02 03:04:05.678'), if(seq % 7 = 1, '1000-01-01', if(seq % 7 = 0, null, '2000-02-29' + interval seq day)),
    if(seq % 7 = 1, '-838:59:59', if(seq % 7 = 2, '838:59:59.999999', if(seq % 7 = 0, null, '23:59:59.000001'))), if(seq % 7 = 0, null, 1901 + seq % 200),
    elt(1 + seq % 3, 'a', 'b b', 'c'), if(seq % 7 = 0, '', if(seq % 7 = 1, 'x,y,z', 'y')), seq % 2, seq % 1024, if(seq % 7 = 0, null, concat('{"n": ', seq, ', "s": [1, 2.5, null]}')),
    if(seq % 7 = 0, null, unhex(md5(seq))), if(seq % 7 = 1, '', unhex(sha1(seq))), if(seq % 7 = 1, -128, seq % 128), if(seq % 7 = 1, -8388608, seq)
from seq_1_to_500;
