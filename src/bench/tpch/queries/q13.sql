-- How many customers have how many orders, those with none included.
select c_count, count(*) as custdist
from (
    select c_custkey, count(o_orderkey) as c_count
    from {{ source('tpch', 'customer') }}
    left join {{ source('tpch', 'orders') }}
        on o_custkey = c_custkey and o_comment not like '%special%requests%'
    group by c_custkey
) as c_orders
group by c_count
