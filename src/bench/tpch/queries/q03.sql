-- The ten orders of a segment with the largest revenue that had not been shipped on a day.
select
    l_orderkey,
    sum(l_extendedprice * (1 - l_discount)) as revenue,
    o_orderdate,
    o_shippriority
from {{ source('tpch', 'customer') }}
join {{ source('tpch', 'orders') }} on o_custkey = c_custkey
join {{ source('tpch', 'lineitem') }} on l_orderkey = o_orderkey
where c_mktsegment = 'BUILDING'
    and o_orderdate < date '1995-03-15'
    and l_shipdate > date '1995-03-15'
group by l_orderkey, o_orderdate, o_shippriority
order by revenue desc, o_orderdate, l_orderkey
limit 10
