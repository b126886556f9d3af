{# A category's name after the names of those above it, such as "Outdoors > Camping > Tents": `aliases` are the category and, one by one,
   those above it. #}
{% macro category_path(aliases, separator=' > ') -%}
    concat_ws('{{ separator }}'{% for alias in aliases | reverse %}, {{ filled(alias ~ '.name') }}{% endfor %})
{%- endmacro %}
