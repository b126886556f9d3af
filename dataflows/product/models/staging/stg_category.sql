-- One row for each category, with its path from the top. A category waits for those above it: until they are known its path would be
-- another one, and every text below it would be embedded twice. Of a deeper tree the path has the lowest levels.
{% set levels = ['one', 'two', 'three'] %}
select
    one.id,
    one.name,
    {{ category_path(levels) }} as path
from {{ source('shop', 'category') }} as one
{%- for upper in levels[1:] %}
left join {{ source('shop', 'category') }} as {{ upper }} on {{ upper }}.id = {{ levels[loop.index0] }}.parent_id
{%- endfor %}
where
{%- for upper in levels[1:] %}
    ({{ levels[loop.index0] }}.parent_id is null or {{ upper }}.id is not null){{ ' and' if not loop.last }}
{%- endfor %}
