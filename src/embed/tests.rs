//! The real model: `scripts/model.sh` fetches it, and `make test` runs that first.

use super::*;
use crate::config::DeviceChoice;

pub(crate) fn config() -> config::Embed {
    config::Embed {
        model: "sentence-transformers/all-MiniLM-L6-v2".into(),
        path: None,
        sha256: Some("53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db".into()),
        device: DeviceChoice::Cpu,
        text_max_tokens: 256,
        batch_max_tokens: 4096,
        store: "store".into(),
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[test]
fn a_vector_does_not_depend_on_its_batch() {
    let embedder = Embedder::load(&config()).unwrap();
    let long = "the quick brown fox jumps over the lazy dog ".repeat(60);
    let texts = ["", "tent", "a warm sleeping bag for cold nights", "Grüße aus München 漢字 🚴", long.as_str()];
    let mut seen = 0;
    let together = embedder.embed(&texts, &mut |b| seen += b.texts).unwrap();
    assert_eq!(seen, texts.len());
    for (text, vector) in texts.iter().zip(&together) {
        let alone = &embedder.embed(&[text], &mut |_| ()).unwrap()[0];
        assert!(cosine(alone, vector) >= 0.99999, "{text:?}");
        assert!((cosine(vector, vector) - 1.0).abs() < 1e-5);
    }
    assert_eq!(together[0].len(), embedder.dimension());
}

/// What `scripts/reference_vectors.py` has written.
#[derive(serde::Deserialize)]
struct Reference {
    model_sha256: String,
    max_tokens: usize,
    vectors: Vec<ReferenceVector>,
}

#[derive(serde::Deserialize)]
struct ReferenceVector {
    text: String,
    /// Base64 of little-endian f32.
    vector: String,
}

#[test]
fn vectors_are_those_of_sentence_transformers() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/embed/reference.json");
    let reference: Reference = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let config = config();
    assert_eq!((Some(reference.model_sha256), reference.max_tokens), (config.sha256.clone(), config.text_max_tokens));
    assert!(reference.vectors.len() >= 40);
    let embedder = Embedder::load(&config).unwrap();
    let texts: Vec<&str> = reference.vectors.iter().map(|v| v.text.as_str()).collect();
    let vectors = embedder.embed(&texts, &mut |_| ()).unwrap();
    for (expect, vector) in reference.vectors.iter().zip(&vectors) {
        let bytes = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, &expect.vector).unwrap();
        let numbers: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        assert_eq!(numbers.len(), embedder.dimension());
        let found = cosine(&numbers, vector);
        assert!(found >= 0.9999, "{found} for {:?}", expect.text);
        let alone = embedder.embed_query(&expect.text).unwrap();
        assert_eq!(&alone, vector, "a query is another vector than an item: {:?}", expect.text);
    }
}

#[test]
fn both_encoders_agree_on_the_real_model() {
    let config = config();
    let (weights, _, _) = load::open(&load::find(&config).unwrap(), &config, &Device::Cpu).unwrap();
    let texts: [&[u32]; 3] = [&[101, 7592, 2088, 102], &[101, 102], &[101, 1037, 4010, 5559, 4524, 2005, 3147, 102]];
    let padded = Bert::new(&weights).unwrap().embed(&texts).unwrap();
    let ragged = cpu::Encoder::new(&weights).unwrap().embed(&texts, &Precedence::default());
    for (a, b) in padded.iter().zip(&ragged) {
        assert!(cosine(a, b) >= 0.99999);
    }
}

#[test]
fn near_in_meaning_is_near_in_angle() {
    let embedder = Embedder::load(&config()).unwrap();
    let v =
        embedder.embed(&["a shelter for camping", "two-person tent", "stainless steel saucepan"], &mut |_| ()).unwrap();
    assert!(cosine(&v[0], &v[1]) > cosine(&v[0], &v[2]) + 0.2);
}

#[test]
fn the_head_of_a_long_text_has_the_tokens_of_the_whole() {
    let embedder = Embedder::load(&config()).unwrap();
    let words = |n: usize| (0..n).map(|n| format!("w{n}é, ")).collect::<String>();
    let long = |text: &str| text.repeat(40_000 / text.len());
    let texts = [
        words(3000),
        format!("{}tent", long(" ")),
        format!("{} tent {}", long("x"), words(300)),
        format!("tent {} {}", long("\u{5929}\u{5e55}"), words(9)),
        format!("{}{}", long("\n\t x"), words(300)),
        format!("a {}", long("\u{301}")),
        long("-\u{200b}"),
        "short".into(),
    ];
    let whole = |text: &String| embedder.tokenizer.encode_fast(text.as_str(), true).unwrap().get_ids().to_vec();
    let heads = embedder.encoded(&texts.each_ref().map(String::as_str)).unwrap();
    for (text, head) in texts.iter().zip(heads) {
        assert_eq!(
            head.get_ids(),
            whole(text),
            "{} bytes: {:?}...",
            text.len(),
            text.chars().take(20).collect::<String>()
        );
    }
    assert!(head(&texts[0], 1000).len() < 1000 && head(&texts[0], 1000).ends_with(','));
}

#[test]
fn other_weights_than_the_configured_are_refused() {
    let wrong = config::Embed { sha256: Some("0".repeat(64)), ..config() };
    assert!(matches!(Embedder::load(&wrong), Err(Error::Checksum { .. })));
}
