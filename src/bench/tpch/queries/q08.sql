-- Brazil's share of a type of part in America, by year.
select
    o_year,
    sum(case when nation = 'BRAZIL' then volume else 0 end) / sum(volume) as mkt_share
from (
    select
        extract(year from o_orderdate) as o_year,
        l_extendedprice * (1 - l_discount) as volume,
        n2.n_name as nation
    from {{ source('tpch', 'part') }}
    join {{ source('tpch', 'lineitem') }} on l_partkey = p_partkey
    join {{ source('tpch', 'supplier') }} on s_suppkey = l_suppkey
    join {{ source('tpch', 'orders') }} on o_orderkey = l_orderkey
    join {{ source('tpch', 'customer') }} on c_custkey = o_custkey
    join {{ source('tpch', 'nation') }} as n1 on n1.n_nationkey = c_nationkey
    join {{ source('tpch', 'region') }} on r_regionkey = n1.n_regionkey
    join {{ source('tpch', 'nation') }} as n2 on n2.n_nationkey = s_nationkey
    where r_name = 'AMERICA'
        and o_orderdate between date '1995-01-01' and date '1996-12-31'
        and p_type = 'ECONOMY ANODIZED STEEL'
) as all_nations
group by o_year
