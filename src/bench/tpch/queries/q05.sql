-- Revenue of a year between customers and suppliers of the same Asian nation.
select n_name, sum(l_extendedprice * (1 - l_discount)) as revenue
from {{ source('tpch', 'customer') }}
join {{ source('tpch', 'orders') }} on o_custkey = c_custkey
join {{ source('tpch', 'lineitem') }} on l_orderkey = o_orderkey
join {{ source('tpch', 'supplier') }} on s_suppkey = l_suppkey and s_nationkey = c_nationkey
join {{ source('tpch', 'nation') }} on n_nationkey = s_nationkey
join {{ source('tpch', 'region') }} on r_regionkey = n_regionkey
where r_name = 'ASIA'
    and o_orderdate >= date '1994-01-01'
    and o_orderdate < date '1994-01-01' + interval '1' year
group by n_name
