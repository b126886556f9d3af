-- The hundred dearest orders of a large quantity.
select c_name, c_custkey, o_orderkey, o_orderdate, o_totalprice, sum(l_quantity) as sum_qty
from {{ source('tpch', 'customer') }}
join {{ source('tpch', 'orders') }} on o_custkey = c_custkey
join {{ source('tpch', 'lineitem') }} on l_orderkey = o_orderkey
where o_orderkey in (
    select l_orderkey
    from {{ source('tpch', 'lineitem') }}
    group by l_orderkey
    having sum(l_quantity) > 300
)
group by c_name, c_custkey, o_orderkey, o_orderdate, o_totalprice
order by o_totalprice desc, o_orderdate, o_orderkey
limit 100
