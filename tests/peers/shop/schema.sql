-- The shop of the end-to-end test: a table with the types that hurt, and two that it is joined with.
\set ON_ERROR_STOP on
create type size as enum ('S', 'M', 'L', 'XL');

create table category (id int primary key, name text not null);

create table product (
    id bigint primary key,
    sku varchar(40) not null,
    name text not null,
    description text,
    category_id int,
    list_price numeric(19, 4) not null,
    cost numeric(38, 10),
    any_number numeric,
    weight real,
    height double precision,
    is_active boolean not null default true,
    size size,
    stock smallint not null default 0,
    sold int,
    sell_start timestamptz,
    sell_end timestamptz,
    made_on date,
    updated_at timestamp(6),
    updated_ms timestamp(3),
    opens time(6),
    opens_tz timetz,
    warranty interval,
    rowguid uuid,
    attrs jsonb,
    tags text[],
    ratings int[],
    thumb bytea,
    colour char(10),
    flags bit(8),
    one_bit bit(1),
    origin inet,
    spec xml,
    cash money
);
-- What a row is filled with, whatever becomes of the table.
create table filled (like product);
-- What alter table does its work on; the view knows nothing of these.
alter table product add column note text default 'note', add column old_name text default 'old';
-- A long text is stored outside its row, uncompressed; an update that leaves it alone does not send it.
alter table product alter column description set storage external;

create table review (id bigint primary key, product_id bigint not null, rating smallint not null, at timestamptz not null);

-- One row of product, made from its number and a salt alone; every seventh value of each column is at its type's edge, or null. Some 2,000 texts differ,
-- so that the model does not take most of the test.
create function fill(n bigint, salt int) returns filled language sql as $$
select (
    n, 'SKU-' || n, (array['tent', 'stove', 'lamp', 'backpack', 'bicycle'])[1 + (n + salt) % 5] || ' no. ' || (n + salt) % 100,
    case when n % 500 = 0 then repeat('Grüße aus München 漢字 ', 200) || n when n % 3 = 0 then null else 'Made for ' || (n % 7) || ' people.' end,
    1 + n % 60, round(n * 1.2345 + salt, 4), case n % 7 when 0 then null when 1 then 9999999999999999999999999999.0123456789 else -n / 7.0 end,
    case n % 7 when 0 then null when 1 then 'NaN' when 2 then 123456789012345678901234567890.12345 when 3 then -1e-20 else n * 1e15 end,
    case n % 7 when 0 then '-0'::real when 1 then 3.4e38 when 2 then 'NaN' else n / 3.0 end, case n % 7 when 0 then '-0'::float8 when 1 then 1e-300 when 2 then 'NaN' else n / 3.0::float8 end,
    n % 10 <> 9, (array['S', 'M', 'L', 'XL', null])[1 + n % 5]::size, (n * 37 + salt) % 32767, case n % 7 when 0 then null when 1 then 2147483647 else n end,
    '2024-02-29 07:04:56.789012+00'::timestamptz + n * interval '1 hour', case n % 7 when 0 then null when 1 then '9999-12-31 23:59:59.999999+00' else '2026-01-01 00:00:00+02'::timestamptz end,
    case n % 7 when 0 then null when 1 then '0001-01-01' else '2000-02-29'::date + n::int end, '2026-01-02 03:04:05.678901'::timestamp + n * interval '1 ms',
    '2026-01-02 03:04:05.678'::timestamp + n * interval '1 s', case n % 7 when 0 then null when 1 then '23:59:59.999999' else '08:00'::time end,
    case n % 7 when 0 then null else '08:00:00+02'::timetz end, case n % 7 when 0 then null when 1 then '3 days 04:05:06.789' when 2 then '-1 years -2 mons 3 days 04:05:06' else n * interval '1 minute' end,
    md5(n::text)::uuid, case n % 7 when 0 then null else jsonb_build_object('n', n, 'nested', jsonb_build_array(1, 2.5, null, 'ü"')) end,
    case n % 7 when 0 then null when 1 then '{}' else array['a', null, 'b"c' || n] end, case n % 7 when 0 then null else array[1, null, n::int] end,
    case n % 7 when 0 then null when 1 then '' else decode(md5(n::text), 'hex') end, (array['red', 'green', null])[1 + n % 3], (n % 256)::int::bit(8), (n % 2)::int::bit(1),
    ('10.0.0.' || n % 256 || '/24')::inet, case n % 7 when 0 then null else ('<a b="' || n || '">x</a>')::xml end, (n % 100 + 0.34)::numeric::money
)::filled
$$;

insert into category select n, 'Category ' || n from generate_series(1, 50) n;
insert into product select (fill(n, 0)).* from generate_series(1, :products) n;
insert into review select n, 1 + n * 7 % :products, 1 + n % 5, '2026-03-04 05:06:07+00'::timestamptz + n * interval '1 minute' from generate_series(1, :products) n;
