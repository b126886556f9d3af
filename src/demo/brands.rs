//! Brands are whose things the demo's shop sells.
//!
//! The invariant: they are the same for every seed, and a brand's place here is its id. The names are our own.

/// Names with the country and another name that the brand takes now and then.
pub(super) const BRANDS: &[(&str, &str, &str)] = &[
    ("Nordlys", "Norway", "Nordlys Verksted"),
    ("Hollowell", "United Kingdom", "Hollowell & Daughters"),
    ("Brightwater", "Ireland", "Brightwater Mills"),
    ("Tamarin", "Portugal", "Casa Tamarin"),
    ("Kestrel & Co", "United Kingdom", "Kestrel"),
    ("Fjellheim", "Norway", "Fjellheim 1911"),
    ("Ostrava Works", "Czechia", "Ostrava"),
    ("Millrace", "Belgium", "Millrace Supply"),
    ("Juniper", "Sweden", "Juniper Goods"),
    ("Lanternfish", "Netherlands", "Lanternfish Studio"),
    ("Saltmarsh", "Denmark", "Saltmarsh Makers"),
    ("Grünspecht", "Germany", "Grünspecht Manufaktur"),
    ("Petrichor", "France", "Maison Petrichor"),
    ("Tolmin", "Slovenia", "Tolmin Craft"),
    ("Vireo", "Canada", "Vireo Field"),
    ("Kallio", "Finland", "Kallio Design"),
    ("Quarry Lane", "United Kingdom", "Quarry Lane Tools"),
    ("Oriel", "Wales", "Oriel Workshop"),
    ("Bastion", "Austria", "Bastion Alpin"),
    ("Windhover", "Scotland", "Windhover Outfitters"),
];
