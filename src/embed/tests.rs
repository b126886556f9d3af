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

#[test]
fn near_in_meaning_is_near_in_angle() {
    let embedder = Embedder::load(&config()).unwrap();
    let v =
        embedder.embed(&["a shelter for camping", "two-person tent", "stainless steel saucepan"], &mut |_| ()).unwrap();
    assert!(cosine(&v[0], &v[1]) > cosine(&v[0], &v[2]) + 0.2);
}

#[test]
fn other_weights_than_the_configured_are_refused() {
    let wrong = config::Embed { sha256: Some("0".repeat(64)), ..config() };
    assert!(matches!(Embedder::load(&wrong), Err(Error::Checksum { .. })));
}
