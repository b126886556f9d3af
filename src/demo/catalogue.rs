//! The catalogue is what the demo's shop sells, by department, group and shelf.
//!
//! The invariant: it is the same for every seed; only what is drawn from it differs. The text is our own.

/// The top of the tree.
pub(super) struct Department {
    pub name: &'static str,
    pub about: &'static str,
    pub groups: &'static [Group],
}

pub(super) struct Group {
    pub name: &'static str,
    pub shelves: &'static [Shelf],
    /// What its things cost, from and to, in euros.
    pub euros: (f64, f64),
    pub materials: &'static [&'static str],
    /// What its things are for.
    pub uses: &'static [&'static str],
    /// What sets one apart, as a sentence goes on after "it".
    pub traits: &'static [&'static str],
}

/// Where products stand: the lowest level.
pub(super) struct Shelf {
    pub name: &'static str,
    /// What the shop calls it now and then.
    pub also: &'static str,
    pub items: &'static [&'static str],
}

const fn shelf(name: &'static str, also: &'static str, items: &'static [&'static str]) -> Shelf {
    Shelf { name, also, items }
}

pub(super) const DEPARTMENTS: &[Department] = &[
    Department {
        name: "Outdoors",
        about: "Everything for a day or a month outside.",
        groups: &[
            Group {
                name: "Camping",
                shelves: &[
                    shelf(
                        "Tents",
                        "Tents and tarps",
                        &["two-person tent", "family tent", "tarp", "bivouac shelter", "hammock"],
                    ),
                    shelf(
                        "Sleeping",
                        "Nights outside",
                        &["sleeping bag", "air mattress", "foam mat", "travel pillow", "bag liner"],
                    ),
                    shelf(
                        "Camp kitchen",
                        "Stoves and pots",
                        &["camp stove", "mess tin", "water filter", "cool box", "folding kettle"],
                    ),
                ],
                euros: (15.0, 600.0),
                materials: &["ripstop nylon", "waxed canvas", "anodised aluminium", "recycled polyester", "titanium"],
                uses: &[
                    "nights above the tree line",
                    "weekends by the lake",
                    "long walks with little luggage",
                    "families who sleep outdoors",
                    "paddlers who land late",
                ],
                traits: &[
                    "packs down to the size of a loaf",
                    "stays dry in a storm",
                    "weighs less than a full bottle",
                    "is set up in two minutes",
                    "can be patched with a scrap of tape",
                ],
            },
            Group {
                name: "Cycling",
                shelves: &[
                    shelf(
                        "Bicycles",
                        "Bikes",
                        &["touring bicycle", "folding bicycle", "cargo bike", "gravel bike", "balance bike"],
                    ),
                    shelf(
                        "Bags and racks",
                        "Luggage for bikes",
                        &["pannier bag", "handlebar bag", "rear rack", "child trailer", "frame bag"],
                    ),
                    shelf(
                        "Bike workshop",
                        "Tools for bikes",
                        &["floor pump", "repair stand", "chain tool", "puncture kit", "torque wrench"],
                    ),
                ],
                euros: (8.0, 2500.0),
                materials: &["chromoly steel", "butted aluminium", "coated canvas", "carbon", "reflective nylon"],
                uses: &[
                    "the daily ride to work",
                    "gravel roads",
                    "crossing a country in three weeks",
                    "children who grow fast",
                    "hills that never end",
                ],
                traits: &[
                    "shrugs off rain and salt",
                    "can be seen from half a mile",
                    "adjusts without tools",
                    "runs quietly for years",
                    "carries a week of shopping",
                ],
            },
            Group {
                name: "Clothing",
                shelves: &[
                    shelf(
                        "Jackets",
                        "Jackets and coats",
                        &["rain jacket", "down vest", "wind shell", "wool coat", "cycling cape"],
                    ),
                    shelf(
                        "Footwear",
                        "Shoes and socks",
                        &[
                            "pair of hiking boots",
                            "pair of trail shoes",
                            "pair of wool socks",
                            "pair of rubber boots",
                            "pair of camp slippers",
                        ],
                    ),
                    shelf(
                        "Layers",
                        "Jumpers and shirts",
                        &["merino jumper", "base layer", "flannel shirt", "sun hat", "pair of work gloves"],
                    ),
                ],
                euros: (9.0, 380.0),
                materials: &["merino wool", "organic cotton", "oiled leather", "recycled down", "boiled wool"],
                uses: &["wet autumns", "mountain paths", "cold offices", "summers in the south", "windy ferry decks"],
                traits: &[
                    "breathes on a climb",
                    "is mended for free",
                    "dries overnight",
                    "keeps its shape wash after wash",
                    "does not smell after three days",
                ],
            },
        ],
    },
    Department {
        name: "House",
        about: "For rooms that are lived in.",
        groups: &[
            Group {
                name: "Kitchen",
                shelves: &[
                    shelf(
                        "Cookware",
                        "Pots and pans",
                        &["saucepan", "cast-iron skillet", "casserole", "wok", "bread tin"],
                    ),
                    shelf(
                        "Knives and boards",
                        "Cutting",
                        &["chef's knife", "bread knife", "chopping board", "sharpening stone", "paring knife"],
                    ),
                    shelf(
                        "Coffee and tea",
                        "Hot drinks",
                        &["espresso maker", "kettle", "teapot", "coffee grinder", "milk jug"],
                    ),
                ],
                euros: (7.0, 320.0),
                materials: &["copper", "enamelled iron", "olive wood", "stoneware", "brushed steel"],
                uses: &[
                    "slow Sunday stews",
                    "small kitchens",
                    "people who bake every week",
                    "quick breakfasts",
                    "cooks who taste as they go",
                ],
                traits: &[
                    "spreads heat evenly",
                    "goes into the dishwasher",
                    "keeps its edge for years",
                    "pours without a drip",
                    "looks better with age",
                ],
            },
            Group {
                name: "Living room",
                shelves: &[
                    shelf(
                        "Lamps",
                        "Light",
                        &["reading lamp", "floor lamp", "paper lantern", "candle holder", "night light"],
                    ),
                    shelf(
                        "Textiles",
                        "Blankets and curtains",
                        &["wool blanket", "linen curtain", "floor cushion", "rag rug", "table runner"],
                    ),
                    shelf(
                        "Storage",
                        "Shelves and baskets",
                        &["storage basket", "wall shelf", "coat rack", "shoe bench", "magazine box"],
                    ),
                ],
                euros: (9.0, 420.0),
                materials: &["ash wood", "undyed linen", "blown glass", "woven willow", "felt"],
                uses: &[
                    "draughty rooms",
                    "reading in bed",
                    "hallways full of shoes",
                    "evenings without a screen",
                    "flats with crooked walls",
                ],
                traits: &[
                    "warms without weight",
                    "dims down to candle light",
                    "washes at forty degrees",
                    "hangs from a single screw",
                    "swallows a surprising amount",
                ],
            },
            Group {
                name: "Office",
                shelves: &[
                    shelf(
                        "Desks and chairs",
                        "Seats and tables",
                        &["standing desk", "ergonomic chair", "saddle stool", "foot rest", "folding table"],
                    ),
                    shelf(
                        "Writing",
                        "Pens and paper",
                        &["fountain pen", "field notebook", "mechanical pencil", "desk blotter", "letter opener"],
                    ),
                    shelf(
                        "Desk order",
                        "Trays and stands",
                        &["paper tray", "monitor arm", "cable box", "laptop stand", "whiteboard"],
                    ),
                ],
                euros: (3.0, 900.0),
                materials: &["walnut", "powder-coated steel", "cork", "brass", "recycled paper"],
                uses: &[
                    "small home offices",
                    "people who sit all day",
                    "shared tables",
                    "writing by hand",
                    "long calls",
                ],
                traits: &[
                    "moves up without a sound",
                    "supports the lower back",
                    "hides every cable",
                    "lasts a decade",
                    "takes up less room than a book",
                ],
            },
        ],
    },
    Department {
        name: "Garden and workshop",
        about: "For hands that want to do something.",
        groups: &[
            Group {
                name: "Garden",
                shelves: &[
                    shelf(
                        "Hand tools",
                        "Tools for the garden",
                        &["pruning saw", "hand trowel", "dibber", "leaf rake", "grafting knife"],
                    ),
                    shelf(
                        "Watering",
                        "Water and rain",
                        &["watering can", "rain barrel", "garden hose", "drip irrigation kit", "rain gauge"],
                    ),
                    shelf(
                        "Beds and compost",
                        "Soil",
                        &["raised bed", "compost bin", "cold frame", "seed tray", "potting bench"],
                    ),
                ],
                euros: (5.0, 350.0),
                materials: &["galvanised steel", "larch", "terracotta", "forged iron", "jute"],
                uses: &[
                    "balconies full of herbs",
                    "heavy clay soil",
                    "dry summers",
                    "old apple trees",
                    "gardeners with little time",
                ],
                traits: &[
                    "never rusts",
                    "turns scraps into soil in a season",
                    "reaches the back of the border",
                    "is gentle on the wrists",
                    "stays outside all winter",
                ],
            },
            Group {
                name: "Tools",
                shelves: &[
                    shelf(
                        "Power tools",
                        "Machines",
                        &["cordless drill", "jigsaw", "orbital sander", "soldering iron", "heat gun"],
                    ),
                    shelf(
                        "Measuring",
                        "Levels and gauges",
                        &["spirit level", "multimeter", "folding rule", "marking gauge", "laser measure"],
                    ),
                    shelf(
                        "Bench",
                        "Bench and vice",
                        &["workbench", "clamp set", "hand plane", "socket set", "bench vice"],
                    ),
                ],
                euros: (9.0, 480.0),
                materials: &["beech", "chrome vanadium steel", "die-cast aluminium", "glass fibre", "rosewood"],
                uses: &[
                    "first flats",
                    "furniture repair",
                    "electronics at the kitchen table",
                    "sheds without power",
                    "people who measure twice",
                ],
                traits: &[
                    "fits into a drawer",
                    "holds its charge all winter",
                    "measures to a tenth of a millimetre",
                    "locks with one hand",
                    "can be taken apart and oiled",
                ],
            },
            Group {
                name: "Pets",
                shelves: &[
                    shelf("Dogs", "For dogs", &["dog harness", "chew toy", "dog bed", "training lead", "travel bowl"]),
                    shelf(
                        "Cats",
                        "For cats",
                        &["cat tree", "scratching post", "cat flap", "feather wand", "window perch"],
                    ),
                    shelf(
                        "Birds and small animals",
                        "Small animals",
                        &["bird bath", "bird feeder", "rabbit hutch", "aquarium lamp", "nesting box"],
                    ),
                ],
                euros: (4.0, 220.0),
                materials: &["sisal", "untreated pine", "soft rubber", "cotton rope", "glazed clay"],
                uses: &[
                    "dogs that pull",
                    "indoor cats",
                    "long car journeys",
                    "animals with thick coats",
                    "shy newcomers",
                ],
                traits: &[
                    "cannot be chewed through",
                    "is cleaned with a cloth",
                    "calms nervous animals",
                    "folds flat",
                    "has no sharp edge anywhere",
                ],
            },
        ],
    },
    Department {
        name: "Leisure",
        about: "For the hours that belong to nobody else.",
        groups: &[
            Group {
                name: "Audio",
                shelves: &[
                    shelf(
                        "Headphones",
                        "Headphones and earbuds",
                        &[
                            "pair of over-ear headphones",
                            "pair of earbuds",
                            "headset",
                            "headphone amplifier",
                            "ear defender",
                        ],
                    ),
                    shelf(
                        "Speakers",
                        "Loudspeakers",
                        &["bookshelf speaker", "soundbar", "portable speaker", "kitchen radio", "shower radio"],
                    ),
                    shelf(
                        "Records and recording",
                        "Studio",
                        &["record player", "field recorder", "studio microphone", "cassette deck", "metronome"],
                    ),
                ],
                euros: (19.0, 900.0),
                materials: &["walnut veneer", "brushed aluminium", "recycled plastic", "vegan leather", "bakelite"],
                uses: &[
                    "open-plan offices",
                    "late-night listening",
                    "podcasts made at home",
                    "old vinyl collections",
                    "kitchens with an echo",
                ],
                traits: &[
                    "cancels the noise of a train",
                    "plays a whole working week on one charge",
                    "keeps voices clear",
                    "fills a room from a shelf",
                    "can be opened with a plain screwdriver",
                ],
            },
            Group {
                name: "Books",
                shelves: &[
                    shelf(
                        "Reference",
                        "Atlases and guides",
                        &["atlas of rivers", "guide to mushrooms", "star chart", "book of knots", "history of maps"],
                    ),
                    shelf(
                        "Cookery books",
                        "Recipes",
                        &["bread cookbook", "book of soups", "preserving handbook", "spice guide", "picnic book"],
                    ),
                    shelf(
                        "Stories",
                        "Fiction",
                        &["detective novel", "sea story", "collection of fables", "ghost story", "travel diary"],
                    ),
                ],
                euros: (6.0, 60.0),
                materials: &["half linen", "recycled paper", "clothbound boards", "waxed paper", "thin Bible paper"],
                uses: &[
                    "rainy afternoons",
                    "curious ten-year-olds",
                    "beginners without patience",
                    "people who travel by armchair",
                    "reading aloud",
                ],
                traits: &[
                    "has drawings on every page",
                    "opens flat on the table",
                    "explains more than it shows",
                    "fits into a coat pocket",
                    "has an index that one can trust",
                ],
            },
            Group {
                name: "Toys",
                shelves: &[
                    shelf(
                        "Building",
                        "Blocks and tracks",
                        &["wooden train", "marble run", "set of building blocks", "crane kit", "toy bridge"],
                    ),
                    shelf(
                        "Games and puzzles",
                        "Games",
                        &["puzzle of the moon", "board game", "card game", "wooden labyrinth", "memory game"],
                    ),
                    shelf(
                        "Outside and science",
                        "Discovery",
                        &["kite", "toy microscope", "hand puppet", "boomerang", "magnet kit"],
                    ),
                ],
                euros: (5.0, 150.0),
                materials: &["lime wood", "pressed card", "cotton felt", "maple", "natural rubber"],
                uses: &[
                    "children of three and up",
                    "whole families",
                    "windy beaches",
                    "quiet hours",
                    "long train journeys",
                ],
                traits: &[
                    "needs no batteries",
                    "is painted with water colours",
                    "grows with every birthday",
                    "takes an evening to solve",
                    "survives being thrown",
                ],
            },
        ],
    },
];
