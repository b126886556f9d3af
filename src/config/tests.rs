//! What a dataflow.toml becomes, and what is said of its mistakes.

use std::path::Path;

use super::*;

const GOOD: &str = r#"
    name = "shop"
    [kafka]
    bootstrap_servers = "${BROKERS}"
    options = { "security.protocol" = "SSL" }
    [registry]
    url = "${REGISTRY:-http://${HOST}:8081}"
    [[source]]
    schema = "shop"
    table = "product"
    topic = "shop.public.product"
    key = ["id"]
    contract = "product.avsc"
    [index]
    key = "id"
    text = "name"
"#;

fn folder(toml: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("dataflow.toml"), toml).unwrap();
    std::fs::create_dir(folder.path().join("models")).unwrap();
    std::fs::write(folder.path().join("models/view.sql"), "select 1").unwrap();
    let contract = r#"{"type":"record","name":"P","fields":[{"name":"id","type":"long"}]}"#;
    std::fs::write(folder.path().join("product.avsc"), contract).unwrap();
    folder
}

fn load_text(toml: &str) -> Result<Config, Errors> {
    let folder = folder(toml);
    load_with(folder.path(), |name| match name {
        "BROKERS" => Some("a:1,b:2".into()),
        "HOST" => Some("host".into()),
        _ => None,
    })
}

#[test]
fn the_environment_is_put_in() {
    let config = load_text(GOOD).unwrap();
    assert_eq!(config.kafka.bootstrap_servers, "a:1,b:2");
    assert_eq!(config.registry.url.as_deref(), Some("http://host:8081"));
    assert_eq!(config.kafka.options["security.protocol"], "SSL");
    assert_eq!(config.view, "view");
}

#[test]
fn all_mistakes_are_named_at_once_by_their_keys() {
    let bad = GOOD
        .replace("key = [\"id\"]", "key = [\"idd\"]")
        .replace("\"security.protocol\" = \"SSL\"", "\"enable.auto.commit\" = true")
        .replace("${BROKERS}", "${NOT_SET}")
        .replace("text = \"name\"", "text = 5\nann_min_row = 1000")
        + "[serve]\nlisten = \"nowhere\"\nk_max = 0\n[embed]\ndevice = \"tpu\"\n";
    let errors = load_text(&bad).unwrap_err();
    let keys: Vec<&str> = errors.problems.iter().map(|p| p.key.as_str()).collect();
    let expect = [
        "embed.device",
        "index.ann_min_row",
        "index.text",
        "kafka.bootstrap_servers",
        "kafka.options.enable.auto.commit",
        "serve.k_max",
        "serve.listen",
        "source[0].key",
    ];
    assert_eq!(keys, expect, "{errors}");
    let text = errors.to_string();
    assert!(text.contains("did you mean ann_min_rows?") && text.contains("NOT_SET"), "{text}");
}

#[test]
fn raw_is_optional_and_its_keys_stay_out_of_files() {
    assert!(load_text(GOOD).unwrap().raw.is_none());
    let good = format!(
        "{GOOD}\n[raw]\nuri = \"s3://b/raw/\"\noptions = {{ endpoint = \"http://${{HOST}}:9000\", allow_http = true }}\n"
    );
    let config = load_text(&good).unwrap();
    let raw = config.raw.unwrap();
    assert_eq!(raw.options["endpoint"], "http://host:9000");
    assert_eq!(raw.options["allow_http"], "true");
    assert_eq!(raw.table(&config.sources[0]), "s3://b/raw/shop__product");
    let bad = format!(
        "{GOOD}\n[raw]\nuri = \"s3://b\"\nqueue_max_bytes = 2048\nversions_max_age_s = 1\ncommit_max_age = 5\n[raw.options]\nendpont = \"x\"\nsecret_access_key = \"x\"\n"
    );
    let errors = load_text(&bad).unwrap_err();
    let keys: Vec<&str> = errors.problems.iter().map(|p| p.key.as_str()).collect();
    let expect = [
        "raw.commit_max_age",
        "raw.options.endpont",
        "raw.options.secret_access_key",
        "raw.queue_max_bytes",
        "raw.versions_max_age_s",
    ];
    assert_eq!(keys, expect, "{errors}");
    assert!(errors.to_string().contains("AWS_SECRET_ACCESS_KEY"), "{errors}");
    let local = format!("{GOOD}\n[raw]\noptions = {{ region = \"x\" }}\n");
    assert!(load_text(&local).unwrap_err().to_string().contains("s3:// alone"));
}

#[test]
fn an_index_may_lie_on_s3_with_options_of_the_same_shape() {
    let of = |lines: &str| load_text(&GOOD.replacen("[index]\n", &format!("[index]\n{lines}\n"), 1));
    let index =
        of("uri = \"s3://b/i\"\noptions = { endpoint = \"http://${HOST}:9000\", allow_http = true }").unwrap().index;
    assert_eq!((&*index.uri, &*index.options["endpoint"]), ("s3://b/i", "http://host:9000"));
    let refused = |lines: &str, part: &str| {
        let said = of(lines).unwrap_err().to_string();
        assert!(said.contains(part), "{said}");
    };
    refused("uri = \"gs://b/i\"", "index.uri: is of the kind gs://");
    refused("uri = \"s3://b\"\noptions = { access_key_id = \"x\" }", "AWS_ACCESS_KEY_ID");
    refused("uri = \"s3://b\"\noptions = { endpont = \"x\" }", "index.options.endpont: is no option of S3");
    refused("options = { region = \"x\" }", "index.options.region: is for s3:// alone");
}

#[test]
fn what_could_never_work_is_told_too() {
    let refused = |from: &str, to: &str, key: &str, reason: &str| {
        let errors = load_text(&GOOD.replace(from, to)).expect_err(to);
        let told = errors.problems.iter().any(|p| p.key == key && p.reason.contains(reason));
        assert!(told && errors.problems.len() == 1, "{to}: {errors}");
    };
    let raw = |uri: &str| format!("uri = \"data\"\nkey = \"id\"\ntext = \"name\"\n[raw]\nuri = \"{uri}\"\n");
    let index = "key = \"id\"\n    text = \"name\"";
    refused(index, &raw("s3://"), "raw.uri", "names no bucket");
    refused(index, &raw("s3:///path"), "raw.uri", "names no bucket");
    refused(index, &raw("./data/"), "raw.uri", "the index's too");
    refused("key = [\"id\"]", "key = [\"id\", \"id\"]", "source[0].key", "names id again");
    refused("shop.public.product", "^shop.*", "source[0].topic", "no topic of Kafka");
    refused("shop.public.product", "..", "source[0].topic", "no topic of Kafka");
}

#[test]
fn columns_that_differ_in_case_alone_are_refused() {
    let folder = folder(GOOD);
    let contract = r#"{"type":"record","name":"P","fields":[{"name":"id","type":"long"},{"name":"ID","type":"long"}]}"#;
    std::fs::write(folder.path().join("product.avsc"), contract).unwrap();
    let errors = load_with(folder.path(), |_| Some("x".into())).unwrap_err();
    assert!(errors.to_string().contains("id and ID, which differ in case alone"), "{errors}");
}

#[test]
fn the_shipped_dataflow_is_right() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("dataflows/product");
    let config = load_with(&folder, |name| (name == "HOME").then(|| "/home/x".into())).unwrap();
    assert_eq!((config.name.as_str(), config.view.as_str()), ("product", "product_search"));
}

#[test]
fn what_is_no_toml_is_said_with_its_line() {
    assert!(load_text("[kafka\n").unwrap_err().to_string().contains("line 1"));
}
