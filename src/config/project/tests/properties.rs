//! What properties files and tests become, and what is said of their mistakes.

use super::{load_files, words};
use crate::config::{Config, Severity, TestKind};

const MODELS: &[(&str, &str)] = &[
    ("models/a.sql", "select * from {{ source('shop', 'product') }}"),
    ("models/other.sql", "select 1 as id"),
    ("models/v.sql", "select * from {{ ref('a') }}, {{ ref('other') }}"),
    (
        "tests/generic/odd.sql",
        "{% test odd(model, column_name, by=2) %}\nselect * from {{ model }}\nwhere {{ column_name }} % {{ by }} = 1\n{% endtest %}",
    ),
];

fn with_models(files: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    load_files("", &[MODELS, files].concat())
}

#[test]
fn data_tests_are_read_as_dbt_has_them() {
    // The tests of a column `c` of the model `a`, or of the whole model: name, severity, predicate or query.
    let check = |at: &str, tests: &str, expect: (&str, Severity, &str)| {
        let yaml = match at {
            "column" => format!("models:\n - name: a\n   columns:\n    - name: c\n      data_tests: {tests}\n"),
            "source" => format!(
                "sources:\n - name: shop\n   tables:\n   - name: product\n     columns:\n      - name: id\n        tests: {tests}\n"
            ),
            _ => format!("version: 2\nmodels:\n - name: a\n   tests: {tests}\n"),
        };
        let config = with_models(&[("models/any_name.yml", &yaml)]).unwrap_or_else(|e| panic!("{yaml}: {e:#?}"));
        let [test] = config.tests.as_slice() else { panic!("{:?}", config.tests) };
        let fails = match &test.kind {
            TestKind::Query { sql } => words(sql),
            _ => test.predicate().unwrap(),
        };
        assert_eq!((test.name.as_str(), test.severity, fails.as_str()), expect, "{tests}");
        assert_eq!(test.relation, if at == "source" { "shop__product" } else { "a" });
    };
    use Severity::{Error, Warn};
    check("column", "[not_null]", ("not_null_a_c", Error, r#""c" is null"#));
    check("source", "[not_null]", ("source_not_null_shop_product_id", Error, r#""id" is null"#));
    check("column", "[{not_null: {severity: WARN}}]", ("not_null_a_c", Warn, r#""c" is null"#));
    check(
        "column",
        "[{not_null: {name: n, config: {severity: warn, where: 'x > 1', tags: [t]}}}]",
        ("n", Warn, r#"(x > 1) and ("c" is null)"#),
    );
    check("column", "[{name: n, test_name: not_null, where: y}]", ("n", Error, r#"(y) and ("c" is null)"#));
    check(
        "column",
        "[{not_null: {where: \"r = '{{ var('currency') }}'\"}}]",
        ("not_null_a_c", Error, r#"(r = 'EUR') and ("c" is null)"#),
    );
    check(
        "column",
        "[unique]",
        ("unique_a_c", Error, r#""c" in (select "c" from "a" group by "c" having count(*) > 1)"#),
    );
    check(
        "column",
        "[{unique: {where: w}}]",
        ("unique_a_c", Error, r#"(w) and ("c" in (select "c" from "a" where (w) group by "c" having count(*) > 1))"#),
    );
    check(
        "table",
        "[{unique: {column_name: c}}]",
        ("unique_a_c", Error, r#""c" in (select "c" from "a" group by "c" having count(*) > 1)"#),
    );
    check(
        "column",
        "[{accepted_values: {values: [x, \"it's\"]}}]",
        ("accepted_values_a_c__x__it_s", Error, r#""c" not in ('x', 'it''s')"#),
    );
    check(
        "column",
        "[{accepted_values: {arguments: {values: [x]}}}]",
        ("accepted_values_a_c__x", Error, r#""c" not in ('x')"#),
    );
    check(
        "column",
        "[{accepted_values: {values: [1, 2.5, true]}}]",
        ("accepted_values_a_c__1__2_5__True", Error, r#""c" not in (1, 2.5, true)"#),
    );
    check(
        "column",
        "[{accepted_values: {values: ['1'], quote: false}}]",
        ("accepted_values_a_c__False__1", Error, r#""c" not in (1)"#),
    );
    check(
        "column",
        "[{accepted_values: {values: [1], quote: true}}]",
        ("accepted_values_a_c__True__1", Error, r#""c" not in ('1')"#),
    );
    let related = r#""c" is not null and "c" not in (select "id" from "other" where "id" is not null)"#;
    check(
        "column",
        "[{relationships: {to: \"ref('other')\", field: id}}]",
        ("relationships_a_c__id__ref_other_", Error, related),
    );
    let related = r#""c" is not null and "c" not in (select "id" from "shop__category" where "id" is not null)"#;
    check(
        "column",
        "[{relationships: {name: r, arguments: {to: \"source('shop', 'category')\", field: id}}}]",
        ("r", Error, related),
    );
    check(
        "column",
        "[{dbt_utils.expression_is_true: {expression: '>= 0'}}]",
        ("dbt_utils_expression_is_true_a_c___0", Error, r#"not ("c" >= 0)"#),
    );
    check(
        "table",
        "[{dbt_utils.expression_is_true: {arguments: {expression: 'a > b'}}}]",
        ("dbt_utils_expression_is_true_a_a_b", Error, "not (a > b)"),
    );
    check("column", "[odd]", ("odd_a_c", Error, r#"select * from "a" where c % 2 = 1"#));
    check(
        "column",
        "[{odd: {by: 3, where: w}}]",
        ("odd_a_3__c", Error, r#"select * from (select * from "a" where w) dbt_subquery where c % 3 = 1"#),
    );
    // A query that reads another model keeps it, whether an argument or a text names it.
    let yaml = "models: [{name: a, tests: [{odd: {column_name: c, by: ref('w')}}, {dbt_utils.expression_is_true: {expression: 'c in (select c from {{ ref(\"x\") }})'}}]}]";
    let more = [
        ("models/w.sql", "select 1"),
        ("models/x.sql", "select 1"),
        ("models/p.yml", yaml),
        ("models/y.sql", "select 1"),
    ];
    let config = load_files("view = \"v\"", &[MODELS, &more].concat()).unwrap();
    assert_eq!(config.models.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["x", "a", "other", "v", "w"]);
    assert_eq!(config.tests[0].predicate().unwrap(), r#"not (c in (select c from "x"))"#);
    assert!(matches!(&config.tests[1].kind, TestKind::Query { sql } if sql.contains(r#"c % "w" = 1"#)));
    assert!(
        with_models(&[(
            "models/p.yml",
            "models: [{name: a, columns: [{name: c, tests: [{not_null: {enabled: false}}]}]}]"
        )])
        .unwrap()
        .tests
        .is_empty()
    );
}

#[test]
fn a_test_that_is_a_query_knows_its_lines() {
    let files = [
        ("tests/deep/no_bad.sql", "{{ config(severity='warn') }}\n\nselect * from\n{{ ref('v') }} join {{ ref('a') }}"),
        ("models/p.yml", "models: [{name: a, columns: [{name: c, tests: [odd]}]}]"),
    ];
    let config = with_models(&files).unwrap();
    let at = |n: usize, line: usize| config.tests[n].lines[line].to_string();
    assert_eq!((config.tests[0].name.as_str(), config.tests[0].severity), ("no_bad", Severity::Warn));
    assert_eq!(config.tests[0].relation, "v");
    assert_eq!((at(0, 2), at(0, 3)), ("tests/deep/no_bad.sql:3".into(), "tests/deep/no_bad.sql:4".into()));
    assert_eq!(config.tests[1].name, "odd_a_c");
    assert_eq!((at(1, 1), at(1, 2)), ("tests/generic/odd.sql:2".into(), "tests/generic/odd.sql:3".into()));
}

#[test]
fn the_keys_that_only_dbt_minds_are_ignored() {
    let yaml = r#"
version: 2
sources:
  - name: shop
    description: d
    database: x
    schema: public
    loader: debezium
    freshness: {warn_after: {count: 1, period: day}}
    meta: {a: b}
    tags: [t]
    tables:
      - name: product
        identifier: products
        loaded_at_field: x
        columns:
          - {name: id, description: d, data_type: bigint, meta: {}, tags: [], quote: true}
      - name: never_read
        columns: [{name: anything}]
models:
  - name: a
    description:
    docs: {show: false}
    columns:
      - name: id
        constraints: [{type: not_null}]
        tests:
macros: [{name: m}]
exposures: []
"#;
    assert!(with_models(&[("models/staging/_sources.yaml", yaml)]).unwrap().tests.is_empty());
    assert!(with_models(&[("models/empty.yml", "# nothing yet\n")]).is_ok());
}

#[test]
fn what_is_wrong_in_properties_is_named_by_file_and_key() {
    let check = |yaml: &str, expect: &[&str]| {
        let found = with_models(&[("models/p.yml", yaml)]).map(|c| c.tests).unwrap_err();
        assert_eq!(found, expect, "{yaml}");
    };
    let column = |test: &str| format!("models: [{{name: a, columns: [{{name: c, tests: [{test}]}}]}}]");
    let at = "models/p.yml: models.a.columns.c.tests[0]";
    check(
        &column("not_nul"),
        &[&format!(
            "{at}.not_nul: not_nul is not a test that dbt brings along or macros/ and tests/generic/ define; did you mean not_null?"
        )],
    );
    check(&column("{not_null: {colum: x}}"), &[&format!("{at}.not_null.colum: is not a key that Freshet knows")]);
    check(
        &column("{not_null: {config: {severty: warn}}}"),
        &[&format!("{at}.not_null.config.severty: is not a key that Freshet knows; did you mean severity?")],
    );
    check(
        &column("{not_null: {severity: loud}}"),
        &[&format!("{at}.not_null.severity: is \"loud\"; error and warn are possible")],
    );
    check(
        &column("{not_null: {error_if: '> 3'}}"),
        &[&format!("{at}.not_null.error_if: is not supported: a test fails with its first failing row")],
    );
    check(&column("accepted_values"), &[&format!("{at}.accepted_values.values: is not a list of at least one value")]);
    check(&column("{accepted_values: {values: [a, null]}}"), &["models/p.yml: has an empty item in a list"]);
    check(&column("{relationships: {to: ref('v')}}"), &[&format!("{at}.relationships.field: is missing")]);
    check(
        &column("{relationships: {to: ref('z'), field: f}}"),
        &[&format!("{at}.relationships.to: there is no model z in models/")],
    );
    check(
        &column("{relationships: {to: z, field: f}}"),
        &[&format!("{at}.relationships.to: is \"z\", neither ref('model') nor source('schema', 'table')")],
    );
    check(&column("{odd: {bye: 3}}"), &[&format!("{at}.odd: too many arguments: unknown keyword argument `bye`")]);
    check(
        &column("not_null, not_null"),
        &[
            "models/p.yml: models.a.columns.c.tests[1].not_null: the test not_null_a_c is there already, at models/p.yml: models.a.columns.c.tests[0].not_null; give one a name",
        ],
    );
    check(&column("5"), &[&format!("{at}: is not a test: its name, or a mapping from its name to its arguments")]);
    check(
        "models: [{name: a, tests: [not_null]}]",
        &["models/p.yml: models.a.tests[0].not_null: tests a column: it belongs under one, or wants column_name"],
    );
    check(
        "models: [{name: b}]\nmodel: []",
        &[
            "models/p.yml: model: is not a key that Freshet knows; did you mean models?",
            "models/p.yml: models.b: there is no model b in models/",
        ],
    );
    check(
        "models: [{nam: b}, {name: a, colums: []}, {name: a}]",
        &[
            "models/p.yml: models.a.colums: is not a key that Freshet knows; did you mean columns?",
            "models/p.yml: models[0]: has no name",
            "models/p.yml: models[2]: the model a is described twice",
        ],
    );
    check(
        "sources: [{name: shop, tables: [{name: product, columns: [{name: idd}]}, {name: order, tests: [{unique: {column_name: id}}]}]}]",
        &[
            "models/p.yml: sources.shop.tables.order: has data tests, but dataflow.toml has no [[source]] for it",
            "models/p.yml: sources.shop.tables.product.columns.idd: the contract ~/product.avsc has no column idd; did you mean id?",
        ],
    );
    check(
        "models:\n  - name: [",
        &[
            "models/p.yml:3: is no YAML: did not find expected node content at line 3 column 1, while parsing a flow node",
        ],
    );
    check("- a", &["models/p.yml: is not a mapping with sources: or models:"]);
    let error = load_files(
        "",
        &[
            ("models/a.sql", "select 1 from\n{{ source('shop', 'order') }}"),
            ("models/p.yml", "sources: [{name: shop, tables: [{name: order}]}]"),
            ("models/q.yml", "models: [{name: a}]"),
            ("models/r.yml", "models: [{name: a}]"),
            ("tests/t.sql", "select 1"),
        ],
    );
    assert_eq!(
        error.unwrap_err(),
        [
            "models/a.sql:2: models/p.yml: sources.shop.tables.order describes the source, but dataflow.toml has no [[source]] with schema \"shop\" and table \"order\": its topic, key and contract",
            "models/r.yml: models.a: is described already, by models/q.yml: models.a",
            "tests/t.sql: tests nothing: it has neither a ref() nor a source()",
        ]
    );
}
