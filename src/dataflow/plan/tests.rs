//! What is refused, with the line; what is told together; and what is not refused although it looks like it.

use std::path::Path;

use super::*;
use crate::config::{Materialized, Severity, TestKind};
use arrow::datatypes::{DataType, Field, TimeUnit};
use datafusion::optimizer::Optimizer;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;

fn model(name: &str, sql: &str) -> Model {
    let path: Arc<Path> = Path::new(&format!("{name}.sql")).into();
    let lines = sql.split('\n').enumerate().map(|(n, _)| Line { path: path.clone(), number: n as u32 + 1 }).collect();
    Model { name: name.into(), path: path.as_ref().into(), sql: sql.into(), lines, materialized: Materialized::View }
}

fn tables() -> Vec<Table> {
    let fields = vec![
        Field::new("id", DataType::Int64, false),
        Field::new("name", DataType::Utf8, true),
        Field::new("price", DataType::Int64, false),
        Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, None), true),
    ];
    let columns: SchemaRef = Arc::new(Schema::new(fields));
    let table = |name: &str| Table { schema: "s".into(), table: name.into(), columns: columns.clone() };
    vec![table("t"), table("u")]
}

/// All that is wrong with models, the last of which is the view.
fn mistakes(models: &[(&str, &str)]) -> Vec<String> {
    let models: Vec<Model> = models.iter().map(|(name, sql)| model(name, sql)).collect();
    match Plan::query(&models, &models.last().unwrap().name, &tables()) {
        Ok(_) => Vec::new(),
        Err(e) => e.mistakes.iter().map(ToString::to_string).collect(),
    }
}

fn refused(sql: &str, expect: &str) {
    let found = mistakes(&[("v", sql)]);
    assert!(found.len() == 1 && found[0].starts_with(expect), "{sql}\n{expect}\n{found:#?}");
}

fn accepted(sql: &str) {
    assert_eq!(mistakes(&[("v", sql)]), [""; 0], "{sql}");
}

#[test]
fn only_one_query_has_a_way_in() {
    let begins = "has to be one query, which SELECT, WITH or VALUES begins; this begins with";
    let file = tempfile::NamedTempFile::new().unwrap();
    let external = format!("create external table x stored as csv location '{}'", file.path().display());
    for (sql, word) in [
        ("create table x as select 1", "create"),
        ("create or replace view s__t as select 1 as id", "create"),
        (external.as_str(), "create"),
        ("drop table s__t", "drop"),
        ("insert into s__t values (1)", "insert"),
        ("set datafusion.execution.target_partitions = 4", "set"),
        ("copy s__t to 'x.csv'", "copy"),
        ("explain select 1", "explain"),
        ("show tables", "show"),
        ("delete from s__t", "delete"),
    ] {
        refused(&format!("-- select\n{sql}"), &format!("v.sql:2: {begins} {word}"));
    }
    refused(
        "select id from s__t;\n\ndrop table s__t",
        "v.sql:3: has to be one query; a second statement begins here with drop",
    );
    refused("with x as (\n insert into s__t values (1))\nselect 1", "v.sql:2: INSERT is no query");
    refused("/* nothing\n */", "v.sql:1: there is no SQL in it");
    accepted("select id from s__t; -- that is all");
    accepted("(select id from s__t) union all (select 1)");
    accepted("values (1), (2)");
}

#[test]
fn a_clause_that_would_be_ignored_is_refused() {
    for (clause, expect) in [
        ("prewhere id > 1", "PREWHERE"),
        ("connect by prior id = price", "CONNECT BY"),
        ("tablesample (10 percent)", "TABLESAMPLE"),
        ("for update", "FOR UPDATE"),
        ("for share", "FOR SHARE"),
        ("settings a = 1", "SETTINGS"),
        ("format JSONCompact", "FORMAT"),
        ("order by id fetch first 1 row with ties", "FETCH"),
        ("lateral view explode(name) x as y", "LATERAL VIEW"),
        ("cluster by id", "CLUSTER BY"),
        ("distribute by id", "DISTRIBUTE BY"),
        ("sort by id", "SORT BY"),
        ("group by id with rollup", "WITH ROLLUP"),
        ("order by id limit 5 by id", "LIMIT"),
    ] {
        // The word before it, in a text and in a comment, is not the clause.
        let word = expect.to_lowercase();
        refused(&format!("select id -- {word}\nfrom s__t\n{clause}"), &format!("v.sql:3: {expect} is not supported"));
    }
    refused("select id\ninto x from s__t", "v.sql:2: INTO is not supported");
    refused("from\ns__t", "v.sql:1: FROM without SELECT is not supported");
    refused("select\ntop 5 id from s__t", "v.sql:2: TOP is not supported");
    refused("select id from s__t\nexcept all select 1", "v.sql:2: EXCEPT ALL is not supported");
    refused("select id from s__t\nintersect all select 1", "v.sql:2: INTERSECT ALL is not supported");
    accepted("select id from s__t except select 1 intersect select 2 union all select 3");
    refused("select *\nilike '%d' from s__t", "v.sql:2: ILIKE is not supported");
    refused("select id from s__t as x(a int,\n b text, c int, d text)", "v.sql:1: the columns of x have types");
    refused(
        "select id from s__t where\nid is not distinct from 1 and price > 2",
        "v.sql:2: what follows IS [NOT] DISTINCT FROM",
    );
    accepted("select id from s__t where (id is not distinct from 1) and price is distinct from 2 + 1");
    accepted("select id, 'for update' as x from s__t where name <> 'prewhere' -- tablesample");
    accepted("select id, price as format from s__t");
}

#[test]
fn what_a_function_would_ignore_is_refused() {
    refused(
        "select id,\nupper(distinct name) as u from s__t",
        "v.sql:2: upper() is computed from one row, so that DISTINCT",
    );
    refused(
        "select id,\nupper(name) filter (where id > 1) as u from s__t",
        "v.sql:2: upper() is computed from one row, so that FILTER",
    );
    refused(
        "select id,\nupper(name) over (order by id) as u from s__t",
        "v.sql:2: upper() is computed from one row, so that OVER",
    );
    refused(
        "select id, sum(price) over (\nw order by id) as n from s__t window w as (partition by name)",
        "v.sql:2: a window made of another one (w) is not supported",
    );
    refused(
        "select id from s__t\nqualify row_number() over\nw = 1 window w as (order by id)",
        "v.sql:3: OVER w in QUALIFY is not supported",
    );
    accepted("select id, rank() over w as r from s__t window w as (partition by name order by id) qualify r = 1");
}

#[test]
fn errors_of_the_planner_have_the_line_of_what_is_wrong() {
    refused("select id,\n nam\nfrom s__t", "v.sql:2: No field named nam");
    refused("select id\nfrom s__t\nwhere nme = 'x'", "v.sql:3: No field named nme");
    refused("select id,\n\nuper(name) as n from s__t", "v.sql:3: Invalid function 'uper'. Did you mean 'upper'?");
    refused("select id\nfrom\nnowhere", "v.sql:3: table 'nowhere' not found");
    refused("select id,\n'a' || name as n,\nid + at as x\nfrom s__t", "v.sql:3: Cannot coerce arithmetic expression");
    refused("select id\nfrom s__t\nwhere id > 1\nand at + at > at", "v.sql:4: ");
    refused("select id,\nsum(price) as n from s__t\ngroup by name", "v.sql:1: ");
    refused("select a.id from s__t a\njoin s__u b\non a.id = b.ix", "v.sql:3: No field named b.ix");
    refused("select id,\nupper(name, name, name) as n from s__t", "v.sql:2: ");
    refused("select id,\n,\n from s__t", "v.sql:2: Expected: an expression, found: ,");
    refused("select id from s__t\nwhere (id = 1", "v.sql:2: Expected: ), found: EOF");
    refused("select 'a\nb", "v.sql:1: Unterminated string literal");
}

#[test]
fn a_node_that_cannot_be_maintained_has_its_own_line() {
    // What is right, or no SQL, does not draw the line to it.
    let decoy =
        "-- limit random() array_agg\nwith a as (select id, 'limit 1, random()' as l from s__t order by id limit 2)";
    refused(
        &format!("{decoy}\nselect a.id from a join s__u u on a.id = u.id\nlimit 5"),
        "v.sql:4: LIMIT without ORDER BY",
    );
    refused(&format!("{decoy}\nselect id,\nrandom() as r from a"), "v.sql:4: random() gives another answer each time");
    refused(
        "select id, row_number() over (order by id) as a,\nrow_number() over () as b from s__t",
        "v.sql:2: row_number() OVER",
    );
    refused(
        "select array_to_string(array_agg(name order by id), ',') as a,\narray_to_string(array_agg(name), ',') as b from s__t",
        "v.sql:2: array_agg() without ORDER BY",
    );
    refused("select id,\nunnest([1, 2]) as n from s__t", "v.sql:2: UNNEST cannot be maintained");
    refused("select name, count(*) as n from s__t\ngroup by\nrollup (name)", "v.sql:2: GROUPING SETS, ROLLUP");
    // Of two models, the one that says it.
    let stage = ("a", "select id,\n name from s__t\nlimit 3");
    let view = ("v", "-- limit\nselect id,\nname from a order by id limit 1");
    assert_eq!(mistakes(&[stage, view]), ["a.sql:3: LIMIT without ORDER BY has no defined answer"]);
    let stage = ("a", "select id,\n id + at as x from s__t");
    assert!(mistakes(&[stage, ("v", "select id,\nx from a")])[0].starts_with("a.sql:2: Cannot coerce"));
}

#[test]
fn every_mistake_is_told_and_none_that_follows_from_another() {
    let found = mistakes(&[
        ("a", "select id, at,\nnam as name from s__t"),
        // It reads what is wrong: its names are looked at, and no more, as no type is known.
        ("b", "select nothing, id + at as x from a"),
        ("c", "select id from a\nprewhere id > 1"),
        ("d", "select\nupper(nothing) as x, uper(name) as y from s__u"),
        ("e", "select id, name from s__u\nlimit 1"),
        ("f", "select id,\nid + at as x from s__u"),
        ("g", "drop table s__t"),
        ("v", "select e.id, x from e join f on e.id = f.id"),
    ]);
    let starts = [
        "a.sql:2: No field named nam",
        "b.sql:1: No field named nothing",
        "c.sql:2: PREWHERE",
        "d.sql:2: No field named nothing",
        "d.sql:2: Invalid function 'uper'",
        "g.sql:1: has to be one query",
    ];
    let later = ["e.sql:2: LIMIT", "f.sql:2: Cannot coerce"];
    assert_eq!(found.len(), starts.len() + later.len(), "{found:#?}");
    for start in starts.iter().chain(&later) {
        assert!(found.iter().any(|f| f.starts_with(start)), "{start} is not in {found:#?}");
    }
}

#[test]
fn the_clauses_of_one_query_do_not_hide_each_other() {
    let sql =
        "select id,\nnam,\nuper(name) as u\nfrom s__t join (select idd from s__u) x on\nx.idd = ix\nwhere\npric > 1";
    let found = mistakes(&[("v", sql)]);
    let starts = ["v.sql:4: No field named idd", "v.sql:5: No field named ix", "v.sql:7: No field named pric"];
    let starts = starts.into_iter().chain(["v.sql:2: No field named nam", "v.sql:3: Invalid function 'uper'"]);
    let starts: Vec<&str> = starts.collect();
    assert!(found.len() == 5 && found.iter().zip(&starts).all(|(f, s)| f.starts_with(s)), "{found:#?}");
}

#[test]
fn models_that_nobody_needs_have_to_be_right_sql() {
    let others = [model("x", "select id,\nnam from s__t"), model("y", "select id, random() as r from s__t limit 3")];
    let models = [model("v", "select id from s__t")];
    let project = Project { models: &models, others: &others, view: "v", ..Project::default() };
    let found = Plan::project(&project, &tables(), &BTreeSet::new()).unwrap_err();
    assert_eq!(found.mistakes.len(), 1, "{found}");
    assert!(found.to_string().starts_with("x.sql:2: No field named nam"), "{found}");
    // What they would be refused for were they maintained is nobody's business.
    let project = Project { others: &others[1..], ..project };
    assert_eq!(Plan::project(&project, &tables(), &BTreeSet::new()).unwrap().models(), ["v", "y"]);
}

#[test]
fn a_wrong_test_hides_nothing() {
    let test = |name: &str, relation: &str, expression: &str| DataTest {
        name: name.into(),
        relation: relation.into(),
        kind: TestKind::Expression { expression: expression.into() },
        severity: Severity::Error,
        condition: None,
        declared: format!("p.yml: {name}"),
        lines: Vec::new(),
    };
    let tests = [test("one", "s__t", "nothing > 1"), test("two", "a", "id > 0"), test("three", "a", "now() > at")];
    let models = [model("a", "select id, at from s__t"), model("v", "select id,\nx from a")];
    let project = Project { models: &models, tests: &tests, view: "v", ..Project::default() };
    let found = Plan::project(&project, &tables(), &BTreeSet::new()).unwrap_err().mistakes;
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(found[0].starts_with("p.yml: one: No field named nothing"), "{found:#?}");
    assert!(found[1].starts_with("p.yml: three: now() gives another answer"), "{found:#?}");
    assert!(found[2].starts_with("v.sql:2: No field named x"), "{found:#?}");
}

#[test]
fn names_are_what_they_are() {
    let (models, tables) =
        ([model("StgX", "select id from s__t"), model("a b.c", "select id from \"StgX\"")], tables());
    let view = model("V", "select id from \"a b.c\"");
    let plan = Plan::query(&[models.as_slice(), &[view]].concat(), "V", &tables).unwrap();
    assert_eq!(plan.view_schema().field(0).name(), "id");
}

#[test]
fn what_is_put_together_of_too_much_is_refused() {
    // Each of them is twice in the next.
    let mut models = vec![("m0".to_string(), "select id from s__t".to_string())];
    for n in 1..40 {
        let before = n - 1;
        models.push((format!("m{n}"), format!("select a.id from m{before} a join m{before} b on a.id = b.id")));
    }
    let models: Vec<(&str, &str)> = models.iter().map(|(name, sql)| (name.as_str(), sql.as_str())).collect();
    let found = mistakes(&models);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].contains("materialized='table'"), "{found:#?}");
}

#[test]
fn what_the_batch_does_without_are_rules_of_datafusion() {
    let logical = Optimizer::new().rules;
    let physical = PhysicalOptimizer::new().rules;
    let known: Vec<&str> = logical.iter().map(|r| r.name()).chain(physical.iter().map(|r| r.name())).collect();
    for rule in context::WRONG {
        assert!(known.contains(rule), "{rule} is none of {known:?}");
    }
}
