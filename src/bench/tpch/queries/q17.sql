-- Yearly revenue of orders that are small for their part.
select sum(l_extendedprice) / 7.0 as avg_yearly
from {{ source('tpch', 'lineitem') }} as l
join {{ source('tpch', 'part') }} on p_partkey = l.l_partkey
where p_brand = 'Brand#23'
    and p_container = 'MED BOX'
    and l.l_quantity < (
        select 0.2 * avg(l_quantity)
        from {{ source('tpch', 'lineitem') }}
        where l_partkey = p_partkey
    )
