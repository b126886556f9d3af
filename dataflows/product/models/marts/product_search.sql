-- The view that is indexed: one row for each product on sale, once its category, its brand and a price are known.
-- Whatever is left out of search_text (prices, ratings, stock, dates) can change without a new embedding.
with current_price as (

    select
        product_id,
        currency,
        amount
    from {{ ref('stg_price') }}
    where currency = '{{ var("currency") }}'
    qualify row_number() over (partition by product_id order by valid_from desc, id desc) = 1

),

rated as (

    select
        product_id,
        count(*) as review_count,
        round(avg(rating), 2) as rating
    from {{ ref('stg_review') }}
    group by product_id

)

select
    product.id,
    product.sku,
    product.name,
    product.description,
    brand.name as brand,
    brand.country as brand_country,
    category.name as category,
    category.path as category_path,
    current_price.amount as list_price,
    current_price.currency,
    product.stock,
    product.in_stock,
    product.status,
    rated.rating,
    coalesce(rated.review_count, 0) as review_count,
    product.created_at,
    product.updated_at,
    {{ search_text([
        'product.name',
        ('Brand', 'brand.name'),
        ('Category', 'category.path'),
        'product.description',
    ]) }} as search_text
from {{ ref('stg_product') }} as product
inner join {{ ref('stg_category') }} as category on category.id = product.category_id
left join {{ ref('stg_brand') }} as brand on brand.id = product.brand_id
inner join current_price on current_price.product_id = product.id
left join rated on rated.product_id = product.id
where product.brand_id is null or brand.id is not null
