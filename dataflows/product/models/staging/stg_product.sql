-- The products that a customer can find: one row for each product on sale.
select
    id,
    sku,
    name,
    description,
    category_id,
    brand_id,
    stock,
    stock > 0 as in_stock,
    status,
    created_at,
    updated_at
from {{ source('shop', 'product') }}
where is_active and status <> 'discontinued'
