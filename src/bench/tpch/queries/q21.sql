-- Saudi Arabian suppliers who alone kept orders of several suppliers waiting.
select s_name, count(*) as numwait
from {{ source('tpch', 'supplier') }}
join {{ source('tpch', 'lineitem') }} as l1 on l1.l_suppkey = s_suppkey
join {{ source('tpch', 'orders') }} on o_orderkey = l1.l_orderkey
join {{ source('tpch', 'nation') }} on n_nationkey = s_nationkey
where o_orderstatus = 'F'
    and l1.l_receiptdate > l1.l_commitdate
    and exists (
        select 1
        from {{ source('tpch', 'lineitem') }} as l2
        where l2.l_orderkey = l1.l_orderkey and l2.l_suppkey <> l1.l_suppkey
    )
    and not exists (
        select 1
        from {{ source('tpch', 'lineitem') }} as l3
        where l3.l_orderkey = l1.l_orderkey
            and l3.l_suppkey <> l1.l_suppkey
            and l3.l_receiptdate > l3.l_commitdate
    )
    and n_name = 'SAUDI ARABIA'
group by s_name
order by numwait desc, s_name
limit 100
