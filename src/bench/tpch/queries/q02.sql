-- The cheapest European supplier of each part of a size and type.
select s_acctbal, s_name, n_name, p_partkey, p_mfgr, s_address, s_phone, s_comment
from {{ source('tpch', 'part') }}
join {{ source('tpch', 'partsupp') }} on ps_partkey = p_partkey
join {{ source('tpch', 'supplier') }} on s_suppkey = ps_suppkey
join {{ source('tpch', 'nation') }} on n_nationkey = s_nationkey
join {{ source('tpch', 'region') }} on r_regionkey = n_regionkey
where p_size = 15
    and p_type like '%BRASS'
    and r_name = 'EUROPE'
    and ps_supplycost = (
        select min(ps_supplycost)
        from {{ source('tpch', 'partsupp') }}
        join {{ source('tpch', 'supplier') }} on s_suppkey = ps_suppkey
        join {{ source('tpch', 'nation') }} on n_nationkey = s_nationkey
        join {{ source('tpch', 'region') }} on r_regionkey = n_regionkey
        where ps_partkey = p_partkey and r_name = 'EUROPE'
    )
order by s_acctbal desc, n_name, s_name, p_partkey
limit 100
