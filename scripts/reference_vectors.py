#!/usr/bin/env python3
"""Makes the reference vectors that src/embed is tested against, with sentence-transformers itself.

    scripts/model.sh
    python3 -m venv /tmp/reference && /tmp/reference/bin/pip install sentence-transformers
    /tmp/reference/bin/python scripts/reference_vectors.py

It reads the model that scripts/model.sh has fetched (MODEL_DIR says where, if not in its usual place) and nothing else,
and writes tests/fixtures/embed/reference.json: the texts, and each vector as base64 of little-endian f32.
"""

import base64
import hashlib
import json
import os
import pathlib
import platform

os.environ["HF_HUB_OFFLINE"] = "1"

import sentence_transformers
import tokenizers
import torch
import transformers

MAX_TOKENS = 256
MODEL_DIR = pathlib.Path(
    os.environ.get("MODEL_DIR", pathlib.Path.home() / ".cache/freshet/models/all-MiniLM-L6-v2")
)
FIXTURE = pathlib.Path(__file__).resolve().parent.parent / "tests/fixtures/embed/reference.json"

SHORT = [
    "",
    " ",
    "\n\t \r\n",
    "a",
    "tent",
    "TENT",
    "Tent.",
    "two-person tent",
    "warm sleeping bag for cold nights",
    "How do I keep bread fresh for longer?",
    "the",
    ".",
    "!!!???...",
    "[CLS] [SEP] [MASK] [PAD] [UNK]",
]

PRODUCTS = [
    "Birch chopping board. Oiled by hand, with a groove that catches the juice and feet that do not slip.",
    "Enamelled saucepan, 1.8 l, cream. Heats evenly on gas, electric and induction; the lid fits the oven too.",
    "Headlamp HL-400: 400 lumens, 3 modes, IPX4, runs 38 h on one AAA cell. Weight 61 g. SKU 4006381333931",
    "Over-ear headphones\nBluetooth 5.3\n40 h battery\nFolds flat\nColours: slate, sand, moss",
    "Size 42 EU / 8.5 US / 27 cm; upper: 100% leather; sole: rubber; made in Portugal.",
    "Rain barrel 210 L with tap and child-safe lid, UV-stable, collects from a downpipe of 68-100 mm",
]

NUMBERS = [
    "0",
    "3.14159265358979",
    "1,000,000.00 EUR",
    "-273.15 °C",
    "2024-02-29T23:59:60Z",
    "x^2 + y^2 = z^2; 1/2 < 2/3; a != b",
    "0xDEADBEEF 550e8400-e29b-41d4-a716-446655440000",
    "+49 (0)89 1234-5678",
]

MARKUP = [
    "<p>Soft <b>merino</b> jumper</p><ul><li>machine wash</li><li>no itch</li></ul>",
    "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; &nbsp; &euro;",
    '{"name": "kettle", "volume_l": 1.7, "tags": ["kitchen", "electric"]}',
    "https://shop.example/p/kettle?colour=red&size=1.7#reviews someone@example.com",
    "SELECT name FROM product WHERE price < 20 -- cheap ones",
    "# Heading\n\n* one\n* two\n\n```rust\nfn main() {}\n```",
]

UNICODE = [
    "Grüße aus München: Käsespätzle für 7,90 €",
    "naïve café, résumé, coöperate, Ångström, Łódź, Dvořák",
    # The same letters, composed and in parts.
    "caf\u00e9 \u00fc \u00f1",
    "cafe\u0301 u\u0308 n\u0303",
    "Зимняя палатка на двух человек",
    "σκηνή για δύο άτομα",
    "خيمة لشخصين",
    "אוהל זוגי",
    "दो लोगों के लिए तम्बू",
    "เต็นท์สำหรับสองคน",
    "두 사람을 위한 텐트",
    "二人用のテントと寝袋",
    "双人帐篷，防水，适合徒步旅行。",
    "漢字とkanaとEnglishを混ぜた文",
    "🚴",
    "Best 🎁 ever!!! 😍👍🏽 family: 👨‍👩‍👧‍👦 flag: 🇳🇱",
    "zero\u200bwidth soft\u00adhyphen no\u00a0break bom\ufeffend",
    "ﬁne ligatures, fullwidth ＡＢＣ１２３, ½ ² ™",
    "control \x01\x02 and replacement \ufffd characters",
    "𝔉𝔯𝔢𝔰𝔥𝔢𝔱 𐍈 𠜎",
]


def long_texts():
    sentence = "The river froze at night and broke again by noon, carrying reeds, ice and a red rowing boat downstream. "
    words = "pneumonoultramicroscopicsilicovolcanoconiosis "
    return [
        # Below, at about, and beyond the tokens that count.
        sentence * 4,
        sentence * 11,
        sentence * 12,
        sentence * 60,
        # Only what comes after the end differs: the vectors must not.
        sentence * 30 + "A completely different ending about espresso machines.",
        words * 40,
        # One word that is longer than the tokenizer takes.
        "x" * 1000,
        "漢字" * 300,
        "🚴" * 300,
        " ".join(str(n * n) for n in range(400)),
        "<div>" * 100 + "kettle" + "</div>" * 100,
    ]


def main():
    model = sentence_transformers.SentenceTransformer(str(MODEL_DIR), device="cpu")
    model.max_seq_length = MAX_TOKENS
    texts = SHORT + PRODUCTS + NUMBERS + MARKUP + UNICODE + long_texts()
    assert len(texts) == len(set(texts))
    # One at a time: nothing is padded.
    vectors = model.encode(texts, batch_size=1, normalize_embeddings=True, convert_to_numpy=True)
    fixture = {
        "made_by": "scripts/reference_vectors.py",
        "versions": {
            "python": platform.python_version(),
            "sentence-transformers": sentence_transformers.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
            "torch": torch.__version__,
        },
        "model_sha256": hashlib.sha256((MODEL_DIR / "model.safetensors").read_bytes()).hexdigest(),
        "max_tokens": MAX_TOKENS,
        "vectors": [
            {"text": text, "vector": base64.b64encode(vector.astype("<f4").tobytes()).decode()}
            for text, vector in zip(texts, vectors, strict=True)
        ],
    }
    FIXTURE.parent.mkdir(parents=True, exist_ok=True)
    FIXTURE.write_text(json.dumps(fixture, indent=1) + "\n")
    print(f"{len(texts)} vectors in {FIXTURE}")


if __name__ == "__main__":
    main()
