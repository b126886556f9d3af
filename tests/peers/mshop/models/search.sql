select
    id, big, name, body, price, wide, f, d, at, ts, d1, t1, y1, e1, s1, b1, b10, j, bin, bl, ti, me,
    concat_ws('. ', name, body) as search_text
from {{ source('shop', 'product') }}
