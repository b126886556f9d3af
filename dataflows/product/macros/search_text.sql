{# The text that is embedded: what is there of its parts, one sentence each. A part is a column, or a pair of a label and a column. #}
{% macro search_text(parts) -%}
    concat_ws(
        '. '
        {%- for part in parts %},
        {% if part is string -%}
            {{ filled(part) }}
        {%- else -%}
            '{{ part[0] }}: ' || {{ filled(part[1]) }}
        {%- endif -%}
        {% endfor %}
    )
{%- endmacro %}

{# A text, or null where there is nothing but blanks. #}
{% macro filled(column) -%}
    nullif(btrim({{ column }}), '')
{%- endmacro %}
