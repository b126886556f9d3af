-- Every price that a product has or had. The shop adds a row when a price changes and now and then corrects one.
select
    id,
    product_id,
    currency,
    amount,
    valid_from
from {{ source('shop', 'price') }}
