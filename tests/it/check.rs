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
