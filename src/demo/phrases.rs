//! Phrases that products of every kind are described with, and what customers say of them.
//!
//! The invariant: they are the same for every seed; only what is drawn from them differs. The text is our own.

/// Series that model names are made of.
pub(super) const SERIES: &[&str] = &[
    "Skerry", "Tarn", "Fen", "Alder", "Merle", "Corrie", "Lumen", "Harbour", "Drift", "Plover", "Ember", "Sorrel",
    "Bracken", "Cairn", "Osprey", "Wren", "Thistle", "Marram", "Pike", "Vesper",
];

pub(super) const LOOKS: &[&str] = &[
    "compact",
    "sturdy",
    "lightweight",
    "classic",
    "foldable",
    "quiet",
    "handmade",
    "weatherproof",
    "slim",
    "repairable",
    "rugged",
    "elegant",
    "plain",
    "generous",
    "old-fashioned",
    "professional",
];

pub(super) const CLOSERS: &[&str] = &[
    "Spare parts stay available.",
    "A small workshop makes it to order.",
    "It comes in a box of plain cardboard.",
    "The maker takes it back when it has served its time.",
    "There is little to go wrong.",
    "A good present for someone who has everything.",
    "Sold with a guarantee of ten years.",
    "Each one is checked by hand.",
    "The instructions fit on one page.",
    "It can be rented for a week first.",
];

/// What customers put above a review, from one star to five.
pub(super) const VERDICTS: [&[&str]; 5] = [
    &["Sent back", "Broke in a week", "Not again", "A disappointment"],
    &["Expected more", "Could be better", "Only just", "Half-hearted"],
    &["Does what it should", "Fair enough", "Good and bad", "All right for the price"],
    &["Glad I bought it", "Very good", "Nearly perfect", "Recommended"],
    &["Would buy it again", "Could not be happier", "The best I have had", "A small joy every day"],
];
