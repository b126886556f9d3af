-- Runs in PostgreSQL as it runs in Freshet: the end-to-end test compares the two.
with rated as (
    select product_id, count(*) as reviews, sum(rating) as stars, max(at) as reviewed_at
    from {{ source('shop', 'review') }}
    group by product_id
)
select
    p.id, p.sku, p.name, p.description, p.list_price, p.cost, p.any_number, p.weight, p.height, p.is_active, p.size, p.stock, p.sold,
    p.sell_start, p.sell_end, p.made_on, p.updated_at, p.updated_ms, p.opens, p.opens_tz, p.warranty, p.rowguid, p.attrs,
    p.tags, p.ratings, p.thumb, p.colour, p.flags, p.one_bit, p.origin, p.spec, p.cash,
    -- An answer is JSON, which has no NaN.
    p.weight = cast('NaN' as real) as weight_is_nan, p.height = cast('NaN' as double precision) as height_is_nan,
    c.name as category,
    coalesce(r.reviews, 0) as reviews, r.stars, r.reviewed_at,
    concat_ws('. ', p.name, c.name, p.description) as search_text
from {{ source('shop', 'product') }} p
left join {{ source('shop', 'category') }} c on c.id = p.category_id
left join rated r on r.product_id = p.id
where p.is_active
