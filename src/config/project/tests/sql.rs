//! What Freshet itself writes, in macros and predicates, is SQL that DataFusion takes for what dbt means by it.

use arrow::util::display::array_value_to_string;
use datafusion::prelude::SessionContext;

use super::rendered;
use crate::config::{DataTest, Severity, TestKind};

/// The rows of a query, each as its columns' texts; null is an empty one.
async fn rows(context: &SessionContext, sql: &str) -> Vec<Vec<String>> {
    let answer = async { context.sql(sql).await?.collect().await };
    let batches = answer.await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    let text = |column, n| array_value_to_string(column, n).unwrap();
    batches
        .iter()
        .flat_map(|b| (0..b.num_rows()).map(|n| b.columns().iter().map(|c| text(c, n)).collect::<Vec<_>>()))
        .collect()
}

#[tokio::test]
async fn the_macros_of_packages_are_dbts() {
    let context = SessionContext::new();
    let check = async |expression: &str, expect: &str| {
        let sql = rendered(&format!("select {expression}"), "").unwrap().sql;
        assert_eq!(rows(&context, &sql).await, [[expect]], "{sql}");
    };
    check(r#"{{ dbt.concat(["'a'", "'b'"]) }}"#, "ab").await;
    check(r#"{{ dbt.cast("1", dbt.type_string()) }}"#, "1").await;
    check(r#"{{ dbt.safe_cast("'x'", "int") }}"#, "").await;
    check(r#"{{ dbt.hash("'a'") }}"#, "0cc175b9c0f1b6a831c399e269772661").await;
    check(r#"{{ dbt.length("'abc'") }}"#, "3").await;
    check(r#"{{ dbt.replace("'aba'", "'a'", "'c'") }}"#, "cbc").await;
    check(r#"{{ dbt.position("'b'", "'abc'") }}"#, "2").await;
    check(r#"{{ dbt.right("'abc'", 2) }}"#, "bc").await;
    check(r#"{{ dbt.split_part("'a-b'", "'-'", 2) }}"#, "b").await;
    check(r#"{{ dbt.date_trunc('month', "timestamp '2024-05-17 01:02:03'") }}"#, "2024-05-01T00:00:00").await;
    check(r#"{{ dbt.bool_or("a") }} from (values (false), (true)) t(a)"#, "true").await;
    check(r#"'{{ dbt.escape_single_quotes("it's") }}'"#, "it's").await;
    check(r#"{{ dbt.string_literal("a") }}"#, "a").await;
    for name in ["string", "timestamp", "float", "numeric", "bigint", "int", "boolean"] {
        check(&format!("cast(null as {{{{ dbt.type_{name}() }}}})"), "").await;
    }
    let key = "_dbt_utils_surrogate_key_null_";
    check(&format!(r#"{{{{ dbt_utils.generate_surrogate_key(["'a'", "null"]) }}}} = md5('a-{key}')"#), "true").await;
    check(r#"{{ dbt_utils.safe_divide("1", "0") }}"#, "").await;
    check(r#"{{ dbt_utils.safe_add(["1", "null", "2"]) }}"#, "3").await;
    check(r#"{{ dbt_utils.safe_subtract(["5", "null", "2"]) }}"#, "3").await;
    check(r#"1 from (values (1), (1)) t(a) {{ dbt_utils.group_by(1) }}"#, "1").await;
}

#[tokio::test]
async fn the_predicate_of_a_test_is_true_for_the_rows_that_fail() {
    let context = SessionContext::new();
    rows(&context, "create table a as values (1, 'x'), (2, 'x'), (3, null), (4, 'it''s'), (5, null)").await;
    rows(&context, r#"create view "a b" as select column1 as id, column2 as "C" from a"#).await;
    rows(&context, r#"create table p as select * from (values ('x'), (null)) t(f)"#).await;
    let c = || "C".to_string();
    let check = async |kind: TestKind, condition: Option<&str>, expect: &[&str]| {
        let test = DataTest {
            name: "t".into(),
            relation: "a b".into(),
            kind,
            severity: Severity::Error,
            condition: condition.map(str::to_string),
            declared: String::new(),
            lines: Vec::new(),
        };
        let predicate = test.predicate().unwrap();
        let failed = rows(&context, &format!(r#"select id from "a b" where {predicate} order by id"#)).await;
        assert_eq!(failed.concat(), expect, "{predicate}");
    };
    check(TestKind::NotNull { column: c() }, None, &["3", "5"]).await;
    check(TestKind::NotNull { column: c() }, Some("id < 4 or id = 9"), &["3"]).await;
    check(TestKind::Unique { column: c() }, None, &["1", "2"]).await;
    check(TestKind::Unique { column: c() }, Some("id <> 2"), &[]).await;
    check(TestKind::AcceptedValues { column: c(), values: vec!["'x'".into(), "'y'".into()] }, None, &["4"]).await;
    check(TestKind::Relationships { column: c(), to: "p".into(), field: "f".into() }, None, &["4"]).await;
    check(TestKind::Relationships { column: c(), to: "p".into(), field: "f".into() }, Some("id < 4"), &[]).await;
    check(TestKind::Expression { expression: r#""C" = 'x' or id = 3"#.into() }, None, &["4"]).await;
}
