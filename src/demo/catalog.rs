//! The demo's catalogue: products made up from words of our own, varied enough that searching by meaning makes sense.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// A category: its name, its things, what they are for, what sets one apart.
type Category = (&'static str, &'static [&'static str], &'static [&'static str], &'static [&'static str]);

const CATEGORIES: &[Category] = &[
    (
        "Camping",
        &[
            "two-person tent",
            "sleeping bag",
            "camp stove",
            "headlamp",
            "folding chair",
            "water filter",
            "hammock",
            "cool box",
        ],
        &[
            "nights above the tree line",
            "weekends by the lake",
            "long walks with little luggage",
            "families who sleep outdoors",
        ],
        &[
            "packs down to the size of a loaf",
            "stays dry in a storm",
            "weighs less than a bottle of water",
            "is set up in two minutes",
        ],
    ),
    (
        "Kitchen",
        &[
            "saucepan",
            "chef's knife",
            "espresso maker",
            "bread tin",
            "mixing bowl",
            "kettle",
            "pepper mill",
            "chopping board",
        ],
        &["slow Sunday stews", "small kitchens", "people who bake every week", "quick breakfasts"],
        &["spreads heat evenly", "goes into the dishwasher", "keeps its edge for years", "pours without a drip"],
    ),
    (
        "Garden",
        &[
            "pruning saw",
            "watering can",
            "raised bed",
            "compost bin",
            "rain barrel",
            "bird feeder",
            "hand trowel",
            "garden hose",
        ],
        &["balconies full of herbs", "heavy clay soil", "dry summers", "old apple trees"],
        &[
            "never rusts",
            "turns scraps into soil in a season",
            "reaches the back of the border",
            "is gentle on the wrists",
        ],
    ),
    (
        "Audio",
        &[
            "over-ear headphones",
            "bookshelf speaker",
            "record player",
            "field recorder",
            "soundbar",
            "earbuds",
            "studio microphone",
            "radio",
        ],
        &["open-plan offices", "late-night listening", "podcasts made at home", "old vinyl collections"],
        &[
            "cancels the noise of a train",
            "plays a whole working week on one charge",
            "keeps voices clear",
            "fills a room from a shelf",
        ],
    ),
    (
        "Tools",
        &[
            "cordless drill",
            "spirit level",
            "socket set",
            "workbench",
            "multimeter",
            "hand plane",
            "clamp set",
            "soldering iron",
        ],
        &["first flats", "furniture repair", "electronics at the kitchen table", "sheds without power"],
        &[
            "fits into a drawer",
            "holds its charge all winter",
            "measures to a tenth of a millimetre",
            "locks with one hand",
        ],
    ),
    (
        "Cycling",
        &[
            "touring bicycle",
            "pannier bag",
            "floor pump",
            "cycle helmet",
            "bike lock",
            "rear light",
            "repair stand",
            "saddle",
        ],
        &["the daily ride to work", "gravel roads", "crossing a country in three weeks", "children who grow fast"],
        &["shrugs off rain and salt", "can be seen from half a mile", "resists bolt cutters", "adjusts without tools"],
    ),
    (
        "Books",
        &[
            "atlas of rivers",
            "bread cookbook",
            "guide to mushrooms",
            "history of maps",
            "detective novel",
            "star chart",
            "field notebook",
            "book of knots",
        ],
        &["rainy afternoons", "curious ten-year-olds", "beginners without patience", "people who travel by armchair"],
        &[
            "has drawings on every page",
            "opens flat on the table",
            "explains more than it shows",
            "is printed on recycled paper",
        ],
    ),
    (
        "Toys",
        &[
            "wooden train",
            "marble run",
            "kite",
            "puzzle of the moon",
            "building blocks",
            "toy microscope",
            "hand puppet",
            "board game",
        ],
        &["children of three and up", "whole families", "windy beaches", "quiet hours"],
        &[
            "needs no batteries",
            "is painted with water colours",
            "grows with every birthday",
            "takes an evening to solve",
        ],
    ),
    (
        "Home",
        &[
            "wool blanket",
            "reading lamp",
            "wall clock",
            "storage basket",
            "linen curtain",
            "floor cushion",
            "door mat",
            "air purifier",
        ],
        &["draughty rooms", "reading in bed", "hallways full of shoes", "people with hay fever"],
        &[
            "warms without weight",
            "dims down to candle light",
            "ticks so softly that nobody hears it",
            "washes at forty degrees",
        ],
    ),
    (
        "Clothing",
        &[
            "rain jacket",
            "merino jumper",
            "hiking boots",
            "down vest",
            "work gloves",
            "sun hat",
            "trail shoes",
            "wool socks",
        ],
        &["wet autumns", "mountain paths", "cold offices", "summer in the south"],
        &["breathes when you climb", "is mended for free", "dries overnight", "keeps its shape wash after wash"],
    ),
    (
        "Pets",
        &[
            "dog harness",
            "cat tree",
            "aquarium lamp",
            "travel bowl",
            "chew toy",
            "rabbit hutch",
            "bird bath",
            "grooming brush",
        ],
        &["dogs that pull", "indoor cats", "long car journeys", "animals with thick coats"],
        &["cannot be chewed through", "is cleaned with a cloth", "calms nervous animals", "folds flat"],
    ),
    (
        "Office",
        &[
            "standing desk",
            "fountain pen",
            "desk lamp",
            "paper tray",
            "ergonomic chair",
            "monitor arm",
            "letter scale",
            "whiteboard",
        ],
        &["small home offices", "people who sit all day", "shared tables", "writing by hand"],
        &["moves up without a sound", "supports the lower back", "hides every cable", "lasts a decade"],
    ),
];

const LOOKS: &[&str] = &[
    "Compact",
    "Sturdy",
    "Lightweight",
    "Classic",
    "Foldable",
    "Quiet",
    "Handmade",
    "Weatherproof",
    "Slim",
    "Repairable",
    "Rugged",
    "Elegant",
    "Simple",
    "Insulated",
    "Vintage",
    "Professional",
];
const MATERIALS: &[&str] = &[
    "oak",
    "steel",
    "bamboo",
    "recycled",
    "copper",
    "cork",
    "aluminium",
    "canvas",
    "ash wood",
    "ceramic",
    "carbon",
    "felt",
    "brass",
    "cotton",
    "walnut",
    "titanium",
];
const BRANDS: &[&str] = &[
    "Nordlys",
    "Hollowell",
    "Brightwater",
    "Tamarin",
    "Kestrel & Co",
    "Fjellheim",
    "Ostrava Works",
    "Millrace",
    "Juniper",
    "Lanternfish",
];
const CLOSERS: &[&str] = &[
    "Spare parts stay available.",
    "A small workshop makes it to order.",
    "It comes in a box of plain cardboard.",
    "The maker takes it back when it has served its time.",
    "Reviewers praise how little there is to go wrong.",
    "A good present for someone who has everything.",
];

/// One product of the shop, as its table has it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Product {
    pub id: i64,
    pub sku: String,
    pub name: String,
    pub description: String,
    pub brand: String,
    pub category: String,
    /// In hundredths.
    pub price_cents: i64,
    pub stock: i32,
    pub status: &'static str,
    pub created_us: i64,
    pub eco_label: Option<&'static str>,
}

pub(super) fn describe(rng: &mut StdRng, category: usize, item: &str) -> String {
    let (_, _, uses, traits) = CATEGORIES[category];
    let pick = |rng: &mut StdRng, from: &[&'static str]| *from.choose(rng).unwrap_or(&"");
    format!("This {item} {} and is made for {}. {}", pick(rng, traits), pick(rng, uses), pick(rng, CLOSERS))
}

pub(super) fn product(rng: &mut StdRng, id: i64, created_us: i64) -> Product {
    let category = rng.random_range(0..CATEGORIES.len());
    let (name, items, _, _) = CATEGORIES[category];
    let pick = |rng: &mut StdRng, from: &[&'static str]| *from.choose(rng).unwrap_or(&"");
    let item = pick(rng, items);
    let (look, material) = (pick(rng, LOOKS), pick(rng, MATERIALS));
    Product {
        id,
        sku: format!("{}-{id:06}", &name[..3].to_uppercase()),
        // The model number keeps any two products apart.
        name: format!("{look} {material} {item} No. {id}"),
        description: describe(rng, category, item),
        brand: pick(rng, BRANDS).into(),
        category: name.into(),
        price_cents: rng.random_range(299..49_999),
        stock: rng.random_range(0..200),
        status: ["active", "active", "active", "preorder", "sold_out"][rng.random_range(0..5)],
        created_us,
        eco_label: None,
    }
}

/// Writes a product's description anew.
pub(super) fn rewrite(rng: &mut StdRng, product: &mut Product) {
    let category = CATEGORIES.iter().position(|c| c.0 == product.category).unwrap_or(0);
    let items = CATEGORIES[category].1;
    let item = items.iter().find(|i| product.name.contains(**i)).copied().unwrap_or("thing");
    product.description = describe(rng, category, item);
}
