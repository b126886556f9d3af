//! A dataflow's folder as a dbt project: what it becomes, and what is said of its mistakes.

mod marks;
mod properties;
mod sql;

use crate::config::{Config, Materialized, Model, load_with};

const TOML: &str = r#"
    name = "shop"
    [kafka]
    bootstrap_servers = "a:1"
    [registry]
    url = "http://b"
    [[source]]
    schema = "shop"
    table = "product"
    topic = "shop.product"
    key = ["id"]
    contract = "product.avsc"
    [[source]]
    schema = "shop"
    table = "category"
    topic = "shop.category"
    key = ["id"]
    contract = "product.avsc"
    [index]
    key = "id"
    text = "name"
    [vars]
    currency = "EUR"
    regions = ["eu", "${REGION}"]
"#;
const CONTRACT: &str = r#"{"type":"record","name":"P","fields":[
    {"name":"id","type":"long"},{"name":"name","type":"string"},{"name":"price","type":"long"}]}"#;

/// A folder with `files` beside the usual ones; its first line goes to the top of `dataflow.toml`.
fn load_files(top: &str, files: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let toml = format!("{top}\n{TOML}");
    for (path, text) in [("dataflow.toml", toml.as_str()), ("product.avsc", CONTRACT)].iter().chain(files) {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let variable = |name: &str| (name == "REGION").then(|| "us".to_string());
    load_with(folder.path(), variable).map_err(|errors| {
        let name = folder.path().display().to_string();
        errors.problems.iter().map(|p| format!("{}: {}", p.key, p.reason).replace(&name, "~")).collect()
    })
}

/// The SQL of one model, beside macros.
fn rendered(model: &str, macros: &str) -> Result<Model, Vec<String>> {
    let files = [("models/m.sql", model), ("macros/all.sql", macros), ("models/other.sql", "select 1 as one")];
    load_files("view = \"m\"", &files).map(|c| c.models.into_iter().find(|m| m.name == "m").unwrap())
}

/// SQL without the white space at its ends and between its words.
fn words(sql: &str) -> String {
    sql.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn what_dbt_writes_is_rendered() {
    let check = |model: &str, macros: &str, expect: &str| {
        let model = rendered(model, macros).unwrap_or_else(|e| panic!("{model}: {e:?}"));
        assert_eq!(words(&model.sql), expect);
    };
    check("select * from {{ source('shop', 'product') }}", "", r#"select * from "shop__product""#);
    check("select * from {{ ref('other') }}", "", r#"select * from "other""#);
    check("select * from {{ ref('shop', 'other') }}", "", r#"select * from "other""#);
    check("{{ config(materialized='table', tags=['a']) }}select {{ config.get('materialized') }}", "", "select table");
    check("{{ this }} {{ this.name }} {{ target.name }} {{ target.type }}", "", r#""m" m prod datafusion"#);
    check("{{ source('shop', 'product').identifier }}", "", "product");
    check("{% set r = ref('other') %}{{ r }}, {{ 'x' ~ r }}", "", r#""other", x"other""#);
    check("'{{ var('currency') }}' '{{ var('none', 'x') }}' {{ var('regions') | join('+') }}", "", "'EUR' 'x' eu+us");
    check("{{ env_var('REGION') }} {{ env_var('NONE', 'z') }}", "", "us z");
    check("select 1{% if is_incremental() %} where false{% endif %}{% if not execute %}no{% endif %}", "", "select 1");
    check("{% for c in ['a', 'b'] %}{{ c | upper }}{{ ', ' if not loop.last }}{% endfor %}", "", "A, B");
    check("{% for k, v in {'b': 1, 'a': 2}.items() %}{{ k }}{{ v }} {% endfor %}", "", "b1 a2");
    check("{% set xs = [] %}{% for i in range(3) %}{% do xs.append(i) %}{% endfor %}{{ xs | join(',') }}", "", "0,1,2");
    check("{% set xs = ['a'] + ['b'] %}{{ xs[1] }}{{ xs | length }}{{ 'a' in xs }}{{ xs[:1] | join }}", "", "b2Truea");
    check("{% set a = namespace(n=0) %}{% for i in [1, 2] %}{% set a.n = a.n + i %}{% endfor %}{{ a.n }}", "", "3");
    check(
        "{{ adapter.quote('a b') }} {{ ' x '.strip() }} {{ 'a_b' | replace('_', '.') }} {{ 'q'.upper() }}",
        "",
        r#""a b" x a.b Q"#,
    );
    check("{# a comment {{ nothing }} #}{% raw %}{{ raw }}{% endraw %}", "", "{{ raw }}");
    check("a{%- set x = 1 -%}  \n b{{- ' c' -}}\n d", "", "ab cd");
    check("{{ f('x') }} {{ shop.f(a='y', b=2) }}", "{% macro f(a, b=1) %}{{ a }}/{{ b }}{% endmacro %}", "x/1 y/2");
    check(
        "{{ g(3) }}",
        "{% macro f(n) %}{{ n }}{% if n %}{{ g(n - 1) }}{% endif %}{% endmacro %}\n{% macro g(n) %}{{ f(n) }}{% endmacro %}",
        "3210",
    );
    check(
        "{{ f()[1] }}",
        "{% macro f() %}{% set xs = [] %}{% do xs.append('p') %}{% do xs.extend(['q']) %} {{ return(xs) }} {% endmacro %}",
        "q",
    );
    check(
        "{{ f(4) }}",
        "{%- macro f(n) -%}\n{% if n < 2 %}{{ return(1) }}{% endif %}{{ return(n * f(n - 1)) }}\n{%- endmacro -%}",
        "24",
    );
    check("{{ adapter.dispatch('f')(1) }}", "{% macro default__f(a) %}d{{ a }}{% endmacro %}", "d1");
    check(
        "{% if f() | trim == 'yes' and f().strip() == 'yes' %}same{% endif %}",
        "{% macro f() %}\n  yes\n{% endmacro %}",
        "same",
    );
    check("{% set x %}{% endset %}{{ 'none' if not x }}{% set y %}a{% endset %}{{ y == 'a' }}", "", "noneTrue");
    check(
        "{{ dbt_utils.generate_surrogate_key(['a', 'b']) }}",
        "",
        "md5(coalesce(cast(a as varchar), '_dbt_utils_surrogate_key_null_') || '-' || coalesce(cast(b as varchar), '_dbt_utils_surrogate_key_null_'))",
    );
    check("cast(a as {{ dbt.type_string() }}) {{ dbt.concat(['a', 'b']) }}", "", "cast(a as varchar) a || b");
    check("{{ dbt_utils.group_by(3) }}", "", "group by 1, 2, 3");
}

/// Staging and a mart in the style of dbt's own example projects, copied as one would.
#[test]
fn models_of_a_dbt_project_run_unchanged() {
    let files = [
        (
            "macros/cents_to_dollars.sql",
            "{# A basic example for a project-wide macro to cast a column uniformly #}\n\n{% macro cents_to_dollars(column_name) -%}\n    {{ return(adapter.dispatch('cents_to_dollars')(column_name)) }}\n{%- endmacro %}\n\n{% macro default__cents_to_dollars(column_name) -%}\n    ({{ column_name }} / 100)::numeric(16, 2)\n{%- endmacro %}\n\n{% macro bigquery__cents_to_dollars(column_name) %}\n    round(cast(({{ column_name }} / 100) as numeric), 2)\n{% endmacro %}\n",
        ),
        (
            "models/staging/stg_products.sql",
            "with source as (\n\n    {#-\n    Normally we would select from the table here\n    #}\n    select * from {{ source('shop', 'product') }}\n\n),\n\nrenamed as (\n\n    select\n        id as product_id,\n        {{ cents_to_dollars('price') }} as price\n\n    from source\n\n)\n\nselect * from renamed\n",
        ),
        (
            "models/marts/prices.sql",
            "{{\n  config(\n    materialized = 'table',\n    tags = ['nightly'],\n  )\n}}\n\n{% set levels = ['low', 'high'] %}\n\nselect\n    product_id,\n\n    {% for level in levels -%}\n    sum(case when level = '{{ level }}' then price else 0 end) as {{ level }}_price,\n    {% endfor -%}\n\n    sum(price) as total\n\nfrom {{ ref('stg_products') }}\n\n{% if target.name == 'dev' %}\nlimit 100\n{% endif %}\n\ngroup by product_id\n",
        ),
    ];
    let config = load_files("", &files).unwrap();
    let [staging, mart] = config.models.as_slice() else { panic!("{:?}", config.models) };
    assert_eq!(
        words(&staging.sql),
        "with source as ( select * from \"shop__product\" ), renamed as ( select id as product_id, \
         (price / 100)::numeric(16, 2) as price from source ) select * from renamed"
    );
    assert_eq!(
        words(&mart.sql),
        "select product_id, sum(case when level = 'low' then price else 0 end) as low_price, \
         sum(case when level = 'high' then price else 0 end) as high_price, sum(price) as total \
         from \"stg_products\" group by product_id"
    );
    assert_eq!(mart.materialized, Materialized::Table);
    for (text, line) in [("high_price", 14), ("sum(price)", 17), ("group by", 25)] {
        let n = mart.sql.split('\n').position(|l| l.contains(text)).unwrap();
        assert_eq!(mart.at(n + 1).to_string(), format!("models/marts/prices.sql:{line}"), "{}", mart.sql);
    }
}

#[test]
fn what_is_wrong_in_a_template_is_named_by_file_and_line() {
    let check = |model: &str, macros: &str, expect: &[&str]| {
        assert_eq!(rendered(model, macros).unwrap_err(), expect, "{model}");
    };
    check("select\n{{ nothing }}", "", &["models/m.sql:2: nothing is not defined"]);
    check("{% if\n nothing %}{% endif %}", "", &["models/m.sql:2: nothing is not defined"]);
    check("\n{{ f(1) }}", "", &["models/m.sql:2: f is not a function or macro that this project or Freshet has"]);
    check(
        "\n\n{{ dbt_utils.star(1) }}",
        "",
        &["models/m.sql:3: dbt_utils.star is not a function or macro that this project or Freshet has"],
    );
    check("{{ packaged.one.two }}", "", &["models/m.sql:1: packaged.one is not defined"]);
    check("{{ [1, this.no] | join }}", "", &["models/m.sql:1: item 2 of the list is not defined"]);
    check("{{ [1].sortt() }}", "", &["models/m.sql:1: unknown method: sequence has no method named sortt"]);
    check("{{ 1 | nope }}", "", &["models/m.sql:1: unknown filter: filter nope is unknown"]);
    check("{{ packaged.star(1) }}", "", &["models/m.sql:1: packaged is not defined"]);
    check("a\n{{ f('x') }}", "\n{% macro f(a) %}\n  {{ b }}\n{% endmacro %}", &["macros/all.sql:3: b is not defined"]);
    check(
        "a\n{{ f(c=1) }}",
        "{% macro f(a) %}{% endmacro %}",
        &["models/m.sql:2: too many arguments: unknown keyword argument `c`"],
    );
    check(
        "{{ ref('othe') }}\n{{ source('shop', 'produkt') }}\n{{ var('x') }} {{ env_var('Y') }}\n{{ ref('b', 'c') }}",
        "",
        &[
            "models/m.sql:1: there is no model othe in models/; did you mean other?",
            "models/m.sql:2: dataflow.toml has no [[source]] with schema \"shop\" and table \"produkt\"; did you mean product?",
            "models/m.sql:3: the environment variable Y is not set",
            "models/m.sql:3: the variable x is not in [vars] of dataflow.toml",
            "models/m.sql:4: ref('b', 'c') is of another project; this one is shop",
        ],
    );
    check("a\n{{ exceptions.raise_compiler_error('no ' ~ 1) }}", "", &["models/m.sql:2: no 1"]);
    check("{{ return(1) }}", "", &["models/m.sql:1: return is called outside of a macro"]);
    check(
        "a\n{{ f() }}",
        "{% macro f() %}{{ f() }}{% endmacro %}",
        &["macros/all.sql:1: macros call each other more than 32 deep"],
    );
    check("a\n{% if x", "", &["models/m.sql:2: a {% is not closed"]);
    check("a\n{{ 'x }}\n", "", &["models/m.sql:2: a {{ is not closed"]);
    check("a\n{% if true %}\n", "", &["models/m.sql:2: syntax error: unexpected end of input, expected end of block"]);
    check(
        "a\n\u{F0001}",
        "",
        &["models/m.sql:2: has the private-use character U+F0001, which Freshet keeps for itself"],
    );
    check(
        "{{ config(materialized='clone') }}",
        "",
        &["models/m.sql:1: materialized is \"clone\"; view, ephemeral, table and incremental are possible"],
    );
    check(
        "a",
        "{% macro a() %}{% endmacro %}\n{% macro a() %}{% endmacro %}\n{% macro ref() %}{% endmacro %}",
        &[
            "macros/all.sql:2: the macro a is defined already, in macros/all.sql:1",
            "macros/all.sql:3: a macro cannot be named ref",
        ],
    );
    let long = "a\n".repeat(65_535);
    check(
        &long,
        "",
        &["models/m.sql: this template and all macros have more lines together than can be traced (65,534)"],
    );
    check("a", "\n{% macro a() %}", &["macros/all.sql:2: the macro a is not closed: {% endmacro %} is missing"]);
}

#[test]
fn each_rendered_line_is_traced_to_where_it_was_written() {
    // Each line of the macros' file and of the model says which it is: what is rendered must be traced to just that.
    let macros = "{% macro one(a) %}o{{ a }}:2{% endmacro %}\n\
        {% macro many(a) %}\n\
        many:3 {{ a }}\n\
        many:4\n\
        {%- endmacro %}\n";
    let check = |model: &str, expect: &[(&str, u32)]| {
        let model = rendered(model, macros).unwrap_or_else(|e| panic!("{model}: {e:?}"));
        let lines: Vec<&str> = model.sql.split('\n').collect();
        assert_eq!(lines.len(), model.lines.len(), "{:?}", model.sql);
        let found = lines.iter().enumerate().filter(|(_, text)| !text.trim().is_empty());
        let found: Vec<(&str, String)> = found.map(|(n, text)| (text.trim(), model.at(n + 1).to_string())).collect();
        let expect: Vec<(&str, String)> = expect
            .iter()
            .map(|(text, line)| match text.strip_prefix("macro ") {
                Some(text) => (text, format!("macros/all.sql:{line}")),
                None => (*text, format!("models/m.sql:{line}")),
            })
            .collect();
        assert_eq!(found, expect, "{:?}", model.sql);
    };
    check("a\nb\n\nc", &[("a", 1), ("b", 2), ("c", 4)]);
    check("{{ config(\n  materialized='table',\n  x=1\n) }}\n\nselect\n", &[("select", 6)]);
    check(
        "{% set xs = [\n  'p',\n  'q'\n] %}\na\n{{ xs | join(',\\n') }}\nb",
        &[("a", 5), ("p,", 6), ("q", 6), ("b", 7)],
    );
    check(
        "select\n{% for c in ['p', 'q'] %}\n  {{ c }},\n  {{ c }}2,\n{% endfor %}\nend",
        &[("select", 1), ("p,", 3), ("p2,", 4), ("q,", 3), ("q2,", 4), ("end", 6)],
    );
    check("s\n{% for c in ['p', 'q'] %}{{ c }},\n{% endfor %}end", &[("s", 1), ("p,", 2), ("q,", 2), ("end", 3)]);
    check(
        "s\n{% for c in ['p', 'q'] -%}\n  {{ c }}\n  {%- if not loop.last %},\n{% endif -%}\n{%- endfor %}\nend",
        &[("s", 1), ("p,", 3), ("q", 3), ("end", 7)],
    );
    check(
        "{# a\nb\n#}c\n{% if false %}\nd\n{% endif %}\ne {# x #}\n{% raw %}\n{{ f\n{% endraw %}g",
        &[("c", 3), ("e", 7), ("{{ f", 9), ("g", 10)],
    );
    check("{% set x %}\np\nq\n{% endset %}\na\n{{ x }}\nb", &[("a", 5), ("p", 2), ("q", 3), ("b", 7)]);
    check("a\n  {{ one(1) }}\nb", &[("a", 1), ("o1:2", 2), ("b", 3)]);
    check("a\n{{ many('x') }} tail\nb", &[("a", 1), ("macro many:3 x", 3), ("many:4 tail", 2), ("b", 3)]);
    check("a {{ many('x') }}\nb", &[("a", 1), ("macro many:3 x", 3), ("many:4", 1), ("b", 2)]);
    check("a\n\n{{ many(one(7)) | upper }}\nb", &[("a", 1), ("macro MANY:3 O7:2", 3), ("MANY:4", 3), ("b", 4)]);
    check("a\r\nb\r\n", &[("a", 1), ("b", 2)]);
    check("a\nb\n ;\n\n", &[("a", 1), ("b", 2)]);
    check("", &[]);
}

#[test]
fn the_graph_is_put_in_order_and_cut_to_what_is_needed() {
    let check = |top: &str, models: &[(&str, &str)], more: &[(&str, &str)], expect: &str| {
        let files: Vec<(String, String)> = models
            .iter()
            .map(|(name, refs)| {
                let refs = refs.split_whitespace().map(|r| format!("{{{{ ref('{r}') }}}}"));
                (format!("models/{name}.sql"), refs.collect::<Vec<_>>().join("\n"))
            })
            .chain(more.iter().map(|(path, text)| (path.to_string(), text.to_string())))
            .collect();
        let files: Vec<(&str, &str)> = files.iter().map(|(p, t)| (p.as_str(), t.as_str())).collect();
        let found = match load_files(top, &files) {
            Ok(config) => {
                let names: Vec<&str> = config.models.iter().map(|m| m.name.as_str()).collect();
                format!("{} of {}", config.view, names.join(" "))
            }
            Err(problems) => problems.join("\n"),
        };
        assert_eq!(found, expect);
    };
    check("", &[("z", ""), ("staging/b", "z"), ("a", "b z")], &[], "a of z b a");
    check("view = \"b\"", &[("z", ""), ("b", "z"), ("a", "b")], &[], "b of z b");
    check("view = \"c\"", &[("a", "")], &[], "view: there is no model c in models/");
    check("", &[("a", ""), ("b", ""), ("c", "a")], &[], "view: is missing, and no model refers to any of b, c");
    check("", &[], &[], "models: there is no *.sql in ~/models");
    check(
        "",
        &[("a", "c"), ("b", "a"), ("c", "b"), ("d", "a")],
        &[],
        "models/a.sql:1: the models refer to each other in a cycle: a -> c -> b -> a",
    );
    check("view = \"a\"", &[("a", "a")], &[], "models/a.sql:1: the models refer to each other in a cycle: a -> a");
    check("", &[("x/a", ""), ("y/a", "")], &[], "models/y/a.sql: there is a model a already, in models/x/a.sql");
    check(
        "",
        &[("a", "b"), ("b", ""), ("c", "")],
        &[("models/c.sql", "{{ config(enabled=false) }}{{ ref('b') }}")],
        "a of b a",
    );
    check(
        "",
        &[("a", "b")],
        &[("models/b.sql", "{{ config(enabled=false) }}")],
        "models/a.sql:1: refers to b, which is not enabled",
    );
    let yaml = "models: [{name: b, config: {enabled: false}}]";
    check(
        "",
        &[("a", "b"), ("b", "")],
        &[("models/p.yaml", yaml)],
        "models/a.sql:1: refers to b, which is not enabled",
    );
    // A test keeps the models that it reads.
    let yaml = "models: [{name: c, columns: [{name: x, tests: [not_null]}]}]";
    check("view = \"a\"", &[("a", ""), ("b", ""), ("c", "b"), ("d", "c")], &[("models/p.yml", yaml)], "a of a b c");
    check("view = \"a\"", &[("a", ""), ("b", ""), ("d", "b")], &[("tests/t.sql", "{{ ref('b') }}")], "a of a b");
}

#[test]
fn a_model_is_materialized_as_its_file_or_its_properties_say() {
    let yaml =
        "models:\n - name: a\n   config: {materialized: table}\n - name: b\n   config: {materialized: incremental}\n";
    let files = [
        ("models/p.yml", yaml),
        ("models/a.sql", "{{ config(materialized='ephemeral') }}"),
        ("models/b.sql", "{{ ref('a') }}"),
        ("models/c.sql", "{{ config({'materialized': 'view'}) }}{{ ref('b') }}"),
    ];
    let config = load_files("", &files).unwrap();
    let found: Vec<(&str, Materialized)> = config.models.iter().map(|m| (m.name.as_str(), m.materialized)).collect();
    assert_eq!(found, [("a", Materialized::View), ("b", Materialized::Table), ("c", Materialized::View)]);
}
