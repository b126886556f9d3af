-- Parts that are a notable share of the stock in a nation. The share is 0.0001 at scale factor 1 and grows as the scale shrinks.
select ps_partkey, sum(ps_supplycost * ps_availqty) as value
from {{ source('tpch', 'partsupp') }}
join {{ source('tpch', 'supplier') }} on s_suppkey = ps_suppkey
join {{ source('tpch', 'nation') }} on n_nationkey = s_nationkey
where n_name = 'GERMANY'
group by ps_partkey
having sum(ps_supplycost * ps_availqty) > (
    select sum(ps_supplycost * ps_availqty) * {{ var('fraction') }}
    from {{ source('tpch', 'partsupp') }}
    join {{ source('tpch', 'supplier') }} on s_suppkey = ps_suppkey
    join {{ source('tpch', 'nation') }} on n_nationkey = s_nationkey
    where n_name = 'GERMANY'
)
