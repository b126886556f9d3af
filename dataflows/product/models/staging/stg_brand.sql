select
    id,
    name,
    country
from {{ source('shop', 'brand') }}
