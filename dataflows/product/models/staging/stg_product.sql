-- The products that a customer can find: one row for each product on sale, and the text that is embedded for it.
-- Whatever is left out of search_text (price, stock, dates) can change without a new embedding.
select
    id,
    sku,
    name,
    description,
    brand,
    category,
    list_price,
    currency,
    stock,
    stock > 0 as in_stock,
    status,
    created_at,
    updated_at,
    concat_ws(
        '. ',
        nullif(btrim(name), ''),
        'Brand: ' || nullif(btrim(brand), ''),
        'Category: ' || nullif(btrim(category), ''),
        nullif(btrim(description), '')
    ) as search_text
from {{ source('shop', 'product') }}
where is_active and status <> 'discontinued'
