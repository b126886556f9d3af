-- The customers' marks, 1 to 5. What they wrote is read by nobody here, so it is neither decoded nor kept.
select
    id,
    product_id,
    rating
from {{ source('shop', 'review') }}
