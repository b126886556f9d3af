-- Profit on parts of a colour, by the supplier's nation and year.
select nation, o_year, sum(amount) as sum_profit
from (
    select
        n_name as nation,
        extract(year from o_orderdate) as o_year,
        l_extendedprice * (1 - l_discount) - ps_supplycost * l_quantity as amount
    from {{ source('tpch', 'part') }}
    join {{ source('tpch', 'lineitem') }} on l_partkey = p_partkey
    join {{ source('tpch', 'supplier') }} on s_suppkey = l_suppkey
    join {{ source('tpch', 'partsupp') }} on ps_suppkey = l_suppkey and ps_partkey = l_partkey
    join {{ source('tpch', 'orders') }} on o_orderkey = l_orderkey
    join {{ source('tpch', 'nation') }} on n_nationkey = s_nationkey
    where p_name like '%green%'
) as profit
group by nation, o_year
