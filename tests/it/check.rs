//! `freshet check` as a program: every mistake at once, each by its key, or the plan; and the exit codes that scripts go by.

use std::path::Path;
use std::process::{Command, Output};

fn freshet(arguments: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_freshet")).args(arguments).arg(folder).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy(&path, &to);
        } else {
            std::fs::copy(&path, &to).unwrap();
        }
    }
}

fn shipped() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dataflows/product")
}

#[test]
fn five_mistakes_are_named_by_their_keys() {
    let folder = tempfile::tempdir().unwrap();
    let contract =
        r#"{"type":"record","name":"P","fields":[{"name":"id","type":"long"},{"name":"name","type":"string"}]}"#;
    std::fs::write(folder.path().join("p.avsc"), contract).unwrap();
    std::fs::create_dir(folder.path().join("models")).unwrap();
    std::fs::write(folder.path().join("models/v.sql"), "select * from {{ source('s', 't') }}").unwrap();
    let toml = r#"
        name = "five"
        [kafka]
        bootstrap_servers = "${FRESHET_NO_SUCH_VARIABLE}"
        options = { "enable.auto.commit" = true }
        [registry]
        url = "localhost:8081"
        [[source]]
        schema = "s"
        table = "t"
        topic = "t"
        key = ["idd"]
        contract = "p.avsc"
        [index]
        key = "id"
        text = "name"
        [serve]
        timeout = 5
    "#;
    std::fs::write(folder.path().join("dataflow.toml"), toml).unwrap();
    let keys = [
        "kafka.bootstrap_servers: the environment variable FRESHET_NO_SUCH_VARIABLE is not set",
        "kafka.options.enable.auto.commit: cannot be set",
        "registry.url: is \"localhost:8081\"",
        "serve.timeout: is not a key that Freshet knows",
        "source[0].key: ",
    ];
    let checked = freshet(&["check"], folder.path());
    let said = text(&checked.stdout);
    assert_eq!(checked.status.code(), Some(1), "the answer is no: {said}");
    assert!(said.contains("5 mistakes"), "{said}");
    for key in keys {
        assert!(said.lines().any(|line| line.trim().starts_with(key)), "{key} is not in {said}");
    }
    // Running it is refused for the same reasons, as a wrong configuration.
    let run = freshet(&["run"], folder.path());
    assert_eq!(run.status.code(), Some(2));
    for key in keys {
        assert!(text(&run.stderr).contains(key), "{key} is not in {}", text(&run.stderr));
    }
}

/// A folder with these files; `dataflow.toml` has `more` at its end.
fn folder(more: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let contract = r#"{"type":"record","name":"P","fields":[
        {"name":"id","type":"long"},{"name":"name","type":"string"},{"name":"price","type":"long"}]}"#;
    let toml = format!(
        "name = \"t\"\nview = \"v\"\n[kafka]\nbootstrap_servers = \"localhost:1\"\n[registry]\nurl = \"http://localhost:1\"\n\
         [[source]]\nschema = \"s\"\ntable = \"t\"\ntopic = \"t\"\nkey = [\"id\"]\ncontract = \"p.avsc\"\n\
         [embed]\nstore = \"data/embeddings\"\n{more}"
    );
    for (path, text) in [("dataflow.toml", toml.as_str()), ("p.avsc", contract)].iter().chain(files) {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    folder
}

const INDEX: &str = "[index]\nuri = \"data/index\"\nkey = \"id\"\ntext = \"name\"\n";
const VIEW: (&str, &str) = ("models/v.sql", "select id, name from {{ source('s', 't') }}");

/// What is said of a folder, but for its first line. `run` has to say the same.
fn said(folder: &tempfile::TempDir) -> Vec<String> {
    let (checked, run) = (freshet(&["check"], folder.path()), freshet(&["run"], folder.path()));
    let lines = |bytes: &[u8]| text(bytes).lines().skip(1).map(|l| l.trim().to_string()).collect::<Vec<_>>();
    let told = lines(&checked.stdout);
    assert_eq!((checked.status.code(), run.status.code()), (Some(1), Some(2)), "{told:#?}");
    assert_eq!(lines(&run.stderr), told, "run says something else than check");
    told
}

fn is_said(folder: &tempfile::TempDir, expect: &[&str]) {
    let told = said(folder);
    let all = told.len() == expect.len() && told.iter().zip(expect).all(|(told, expect)| told.starts_with(expect));
    assert!(all, "{expect:#?}\n{told:#?}");
}

#[test]
fn mistakes_of_all_files_are_told_together_each_at_its_line() {
    let toml = "[serve]\nk_maxx = 5\n[index]\nuri = \"gs://b/index\"\nkey = \"idd\"\ntext = \"price\"\n";
    let bad = folder(
        toml,
        &[
            ("models/v.sql", "-- limit\nselect a.id, price,\n interval '1 day' as i\nfrom {{ ref('a') }} a"),
            ("models/a.sql", "select id, price from {{ source('s', 't') }}"),
            // Not of the view: they have to be right all the same, and what reads them is not told.
            ("models/b.sql", "select id,\n nam\nfrom {{ source('s', 't') }}"),
            ("models/c.sql", "select id from {{ ref('b') }}\nprewhere id > 1"),
            ("models/d.sql", "select id\nfrom {{ ref('nowhere') }}"),
            ("models/e.sql", "{{ config(enabled=false) }}select nothing"),
            ("models/f.sql", "select 1 as id\n;\ndrop table s__t"),
            ("tests/t.sql", "select id\nfrom {{ ref('a') }}\nwhere idd > 1"),
            ("models/p.yml", "models:\n - name: a\n   columns:\n   - name: ix\n     tests: [not_null]\n"),
        ],
    );
    let expect = [
        "index.key: the view has no column idd; it has id, price, i",
        "index.text: the column price is of type Int64; what is embedded is text",
        "index.uri: is of the kind gs://",
        "models/b.sql:2: No field named nam",
        "models/c.sql:2: PREWHERE is not supported",
        "models/d.sql:2: there is no model nowhere",
        "models/f.sql:3: has to be one query; a second statement begins here with drop",
        "models/p.yml: models.a.columns.ix.tests[0].not_null: No field named ix",
        "serve.k_maxx: is not a key",
        "tests/t.sql:3: No field named idd",
        "view: the column i is of type Interval(MonthDayNano), which the index cannot hold",
    ];
    is_said(&bad, &expect);
}

#[test]
fn a_dataflow_toml_or_contract_that_cannot_be_read_hides_no_model() {
    let models = [VIEW, ("models/w.sql", "select id\nfrom {{ source('s', 't') }}\nwhere (id = 1")];
    let unreadable = folder("[index\n", &models);
    let told = said(&unreadable);
    assert!(told[0].starts_with("dataflow.toml:15: TOML parse error"), "{told:#?}");
    assert_eq!(told.last().unwrap(), "models/w.sql:3: Expected: ), found: EOF", "{told:#?}");
    let contract = r#"{"type":"record","name":"P","fields":[{"name":"id","type":"long"},
        {"name":"at","type":{"type":"long","connect.name":"io.debezium.time.Never"}}]}"#;
    let unknown = folder(INDEX, &[models[0], models[1], ("p.avsc", contract)]);
    is_said(&unknown, &["models/w.sql:3: Expected: )", "source[0].contract: "]);
}

#[test]
fn all_that_is_wrong_with_a_contract_is_told_beside_its_source() {
    let contract = r#"{"type":"record","name":"P","fields":[{"name":"id","type":"long"},{"name":"name","type":"string"},
        {"name":"at","type":{"type":"long","connect.name":"io.debezium.time.Never"}},
        {"name":"size","type":{"type":"bytes","connect.name":"org.example.Size"}}]}"#;
    let wrong = folder(INDEX, &[VIEW, ("p.avsc", contract)]);
    let toml = std::fs::read_to_string(wrong.path().join("dataflow.toml")).unwrap();
    let toml = toml.replace("key = [\"id\"]", "key = [\"idx\"]\nformatt = \"avro\"");
    std::fs::write(wrong.path().join("dataflow.toml"), toml).unwrap();
    let told = said(&wrong);
    let expect = [
        ("source[0].contract: ", "column at: "),
        ("source[0].contract: ", "column size: "),
        ("source[0].formatt: ", "did you mean format?"),
        ("source[0].key: ", "no column idx"),
    ];
    assert_eq!(told.len(), expect.len(), "{told:#?}");
    for (told, (key, part)) in told.iter().zip(expect) {
        assert!(told.starts_with(key) && told.contains(part), "{key}{part} is not in {told}");
    }
}

#[test]
fn what_cannot_be_maintained_is_told_beside_a_reference_to_nowhere() {
    // What the view reads is known although it could not be rendered.
    let models = [
        ("models/a.sql", "select id,\n random() as price from {{ source('s', 't') }}"),
        ("models/b.sql", "select id, price from {{ ref('a') }}"),
        ("models/v.sql", "select id\nfrom {{ ref('b') }}\njoin {{ ref('nowhere') }} using (id)"),
    ];
    let lost = folder(INDEX, &models);
    is_said(&lost, &["models/a.sql:2: random() gives another answer", "models/v.sql:3: there is no model nowhere"]);
}

#[test]
fn names_are_looked_at_also_where_a_mistake_keeps_the_sql_from_being_planned() {
    let wrong = "[index]\nuri = \"data/index\"\nkey = \"idd\"\ntext = \"nam\"\n";
    let yaml = "models:\n - name: v\n   columns:\n   - name: ix\n     tests: [not_null]\n";
    let yaml = ("models/p.yml", yaml);
    let by_outline = "with all_of_it as (select id, t.name, price * 2 as twice from {{ source('s', 't') }} t)\nselect a.* from all_of_it as a";
    // The contract cannot be read at all.
    let unreadable = folder(wrong, &[("models/v.sql", by_outline), yaml, ("p.avsc", "{")]);
    let missing = |column: &str| format!("the view has no column {column}; it has id, name, twice");
    let expect = [
        format!("index.key: {}", missing("idd")),
        format!("index.text: {}", missing("nam")),
        "models/p.yml: models.v.columns.ix.tests[0].not_null: v has no column ix; it has id, name, twice".into(),
        "source[0].contract: ".into(),
    ];
    is_said(&unreadable, &expect.each_ref().map(String::as_str));
    // The SQL is wrong further up.
    let stage = ("models/a.sql", "select id, name,\n cost from {{ source('s', 't') }}");
    let view = ("models/v.sql", "select id, name, cost as twice from {{ ref('a') }}");
    let expect = [&expect[0], &expect[1], "models/a.sql:2: No field named cost", &expect[2]];
    is_said(&folder(wrong, &[stage, view, yaml]), &expect);
    // So is what calls what is not there, in models that stand on others that are wrong.
    let view = ("models/v.sql", "select id, roundd(name) as name,\n cast(cost as strnig) as twice from {{ ref('b') }}");
    let between = ("models/b.sql", "select id, name, price,\n lowerr(name) as cost from {{ ref('a') }}");
    let first =
        folder(INDEX, &[("models/a.sql", "select id, nam as name, price from {{ source('s', 't') }}"), between, view]);
    let expect = [
        "models/a.sql:1: No field named nam",
        "models/b.sql:2: Invalid function 'lowerr'",
        "models/v.sql:1: Invalid function 'roundd'",
        "models/v.sql:2: Unsupported SQL type strnig",
    ];
    is_said(&first, &expect);
    // Where the name of a column is itself the mistake, nobody can say what it was to be.
    let misnamed = [
        ("models/a.sql", "select id, t.nam, price from {{ source('s', 't') }} t"),
        ("models/v.sql", "select id, name from {{ ref('a') }}"),
    ];
    is_said(&folder(INDEX, &misnamed), &["models/a.sql:1: No field named t.nam"]);
    // A wrong key of a source leaves its columns as they are.
    let keyed = folder(wrong, &[VIEW]);
    let toml = std::fs::read_to_string(keyed.path().join("dataflow.toml")).unwrap();
    std::fs::write(keyed.path().join("dataflow.toml"), toml.replace("[\"id\"]", "[\"idx\"]")).unwrap();
    is_said(&keyed, &["index.key: the view has no", "index.text: the view has no", "source[0].key: "]);
    // What may be a column is not called missing.
    let unknown = [("models/v.sql", "select *, id + 1 from {{ source('s', 't') }}"), ("p.avsc", "{")];
    is_said(&folder(wrong, &unknown), &["source[0].contract: "]);
}

#[test]
fn what_a_start_would_refuse_is_refused() {
    let with = |more: &str| folder(&format!("{more}{INDEX}"), &[VIEW]);
    let options = |text: &str| with(&format!("[kafka.options]\n{text}\n"));
    is_said(&options("\"no.such.option\" = 1"), &["kafka.options.no.such.option: No such configuration property"]);
    is_said(&options("\"fetch.min.bytes\" = \"many\""), &["kafka.options.fetch.min.bytes: Invalid value"]);
    is_said(
        &options("\"security.protocol\" = \"ssl\"\n\"ssl.ca.location\" = \"/nowhere/ca.pem\""),
        &["kafka.options.ssl.ca.location: /nowhere/ca.pem cannot be read: "],
    );
    let few = "\"receive.message.max.bytes\" = 2000";
    let too_few = "kafka.options: `receive.message.max.bytes` must be";
    is_said(&options(few), &[too_few]);
    // What is none hides nothing of what the others are together; one whose value nobody knows does.
    is_said(
        &options(&format!("{few}\n\"check.crcs\" = false\n\"no.such.option\" = 1")),
        &[too_few, "kafka.options.check.crcs: cannot", "kafka.options.no.such.option: No"],
    );
    let unset = "\"ssl.key.password\" = \"${FRESHET_NO_SUCH_VARIABLE}\"";
    is_said(&options(&format!("{few}\n{unset}")), &["kafka.options.ssl.key.password: the environment variable"]);
    let files = "\"ssl.ca.location\" = \"/nowhere/ca\"\n\"ssl.key.location\" = \"/nowhere/key\"";
    is_said(
        &options(&format!("{files}\n{unset}\n\"socket.timeout.ms\" = \"ten\"")),
        &[
            "kafka.options.socket.timeout.ms: Invalid",
            "kafka.options.ssl.ca.location: /nowhere/ca cannot",
            "kafka.options.ssl.key.location: /nowhere/key cannot",
            "kafka.options.ssl.key.password: the environment variable",
        ],
    );
    // Nothing more is said of what nobody knows.
    let unknown = folder(&format!("[serve]\nlisten = \"${{FRESHET_NO_SUCH_VARIABLE}}\"\n{INDEX}"), &[VIEW]);
    let toml = std::fs::read_to_string(unknown.path().join("dataflow.toml")).unwrap();
    let toml = toml.replace("\"http://localhost:1\"", "\"${FRESHET_NO_SUCH_VARIABLE}\"");
    let toml =
        toml.replace("\"localhost:1\"", "\"a:1,:1,b:x\"").replace("[\"id\"]", "[\"${FRESHET_NO_SUCH_VARIABLE}\"]");
    std::fs::write(unknown.path().join("dataflow.toml"), toml).unwrap();
    is_said(
        &unknown,
        &[
            "kafka.bootstrap_servers: \":1\" is not host:port",
            "kafka.bootstrap_servers: \"b:x\" is not host:port",
            "registry.url: the environment variable",
            "serve.listen: the environment variable",
            "source[0].key: the environment variable",
        ],
    );
    for option in ["metadata.broker.list", "test.mock.num.brokers", "auto.commit.enable", "api.version.request"] {
        is_said(&options(&format!("\"{option}\" = 1")), &[&format!("kafka.options.{option}: cannot be set: ")]);
    }
    let model = folder("path = \"model\"\n", &[VIEW, ("model/README.md", "")]);
    let toml = std::fs::read_to_string(model.path().join("dataflow.toml")).unwrap();
    std::fs::write(model.path().join("dataflow.toml"), format!("{toml}{INDEX}")).unwrap();
    is_said(&model, &["embed.path: "]);
    let columns = "select id, name, name as \"a.b\", id as _x from {{ source('s', 't') }}";
    is_said(
        &folder(INDEX, &[("models/v.sql", columns)]),
        &["view: the column \"a.b\" has a dot", "view: the column _x begins with _"],
    );
}

#[test]
fn what_editors_and_dbt_leave_in_files_does_no_harm() {
    let mark = "\u{feff}";
    let sql = format!("{mark}{{{{ log('hello', info=True) }}}}select id, name from {{{{ ref('StgX') }}}}");
    let stage = format!("{mark}select id, name from {{{{ source('s', 't') }}}}");
    let yaml = format!("{mark}models: [{{name: StgX, columns: [{{name: id, tests: [unique]}}]}}]");
    let right = folder(INDEX, &[("models/v.sql", &sql), ("models/StgX.sql", &stage), ("models/p.yml", &yaml)]);
    for file in ["dataflow.toml", "p.avsc"] {
        let text = std::fs::read_to_string(right.path().join(file)).unwrap();
        std::fs::write(right.path().join(file), format!("{mark}{text}")).unwrap();
    }
    let checked = freshet(&["check"], right.path());
    assert_eq!(checked.status.code(), Some(0), "{}{}", text(&checked.stdout), text(&checked.stderr));
}

#[test]
fn a_model_that_cannot_be_maintained_is_refused_by_node_and_line() {
    let folder = tempfile::tempdir().unwrap();
    copy(&shipped(), folder.path());
    let toml = std::fs::read_to_string(folder.path().join("dataflow.toml")).unwrap();
    let schemas = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    let toml = toml.replace("../../schemas", &schemas.to_string_lossy());
    std::fs::write(folder.path().join("dataflow.toml"), toml).unwrap();
    let sql = folder.path().join("models/staging/stg_product.sql");
    let model = std::fs::read_to_string(&sql).unwrap();
    std::fs::write(&sql, format!("{}\nlimit 5\n", model.trim_end())).unwrap();
    let checked = freshet(&["check"], folder.path());
    let said = text(&checked.stdout);
    assert_eq!(checked.status.code(), Some(1), "{said}");
    let line = model.trim_end().lines().count() + 1;
    assert!(said.contains(&format!("models/staging/stg_product.sql:{line}: LIMIT")), "{said}");
}

#[test]
fn the_shipped_dataflow_is_right_and_its_plan_is_printed() {
    let checked = freshet(&["check"], &shipped());
    let said = text(&checked.stdout);
    assert_eq!(checked.status.code(), Some(0), "{said}{}", text(&checked.stderr));
    for part in ["is right", "stg_product", "Projection", "TableScan", "search_text"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
}

#[test]
fn each_model_is_explained_also_one_that_is_a_part_of_others() {
    for (model, of_it) in [("product_search", "current_price"), ("stg_price", "shop__price"), ("stg_category", "three")]
    {
        let explained = freshet(&["explain", "--model", model], &shipped());
        let said = text(&explained.stdout);
        assert_eq!(explained.status.code(), Some(0), "{said}{}", text(&explained.stderr));
        for part in ["TableScan", of_it, "operators", "source", model] {
            assert!(said.contains(part), "{part} is not in {said}");
        }
    }
    let none = freshet(&["explain", "--model", "stg_prize"], &shipped());
    assert_eq!(none.status.code(), Some(2));
    let said = text(&none.stderr);
    assert!(said.contains("no model stg_prize") && !said.contains("test "), "{said}");
    for model in ["stg_brand", "stg_category", "stg_price", "stg_product", "stg_review", "product_search"] {
        assert!(said.contains(model), "{model} is not in {said}");
    }
}

#[test]
fn usage_is_worth_reading_and_its_mistakes_are_code_2() {
    let program = || Command::new(env!("CARGO_BIN_EXE_freshet"));
    let help = program().arg("--help").output().unwrap();
    assert_eq!(help.status.code(), Some(0));
    let said = text(&help.stdout);
    for word in ["run", "check", "explain", "demo", "doctor", "bench", "Exit codes", "FRESHET_LOG"] {
        assert!(said.contains(word), "{word} is not in {said}");
    }
    assert_eq!(program().arg("fly").output().unwrap().status.code(), Some(2));
    assert_eq!(program().output().unwrap().status.code(), Some(2));
    let nowhere = freshet(&["check"], Path::new("/nowhere/at/all"));
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(text(&nowhere.stdout).contains("dataflow.toml"), "{}", text(&nowhere.stdout));
}
