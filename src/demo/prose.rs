//! Prose is what the shop writes with the catalogue's words: names, descriptions, reviews.
//!
//! The invariant: it depends on the generator alone, and a name has its product's number in it, so that no two products have one text.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::catalogue::Group;
use super::phrases::{CLOSERS, LOOKS, SERIES, VERDICTS};

pub(super) fn pick<T: Copy>(rng: &mut StdRng, from: &[T]) -> T {
    *from.choose(rng).expect("no list of the catalogue is empty")
}

/// The name of product number `id`, which is an `item`.
pub(super) fn name(rng: &mut StdRng, item: &str, id: i64) -> String {
    let noun = item.strip_prefix("pair of ").unwrap_or(item);
    let (series, look) = (pick(rng, SERIES), pick(rng, LOOKS));
    match rng.random_range(0..3) {
        0 => format!("{} {noun} {series} {id}", capitalised(look)),
        1 => format!("{series} {id} {noun}"),
        _ => format!("{series} {id} {look} {noun}"),
    }
}

pub(super) fn description(rng: &mut StdRng, group: &Group, item: &str) -> String {
    let (look, material, made_for) = (pick(rng, LOOKS), pick(rng, group.materials), pick(rng, group.uses));
    let traits: Vec<&str> = group.traits.choose_multiple(rng, 2).copied().collect();
    let opening = rng.random_range(0..4);
    let first = match opening {
        0 => format!("{} {look} {item} in {material} that {}.", capitalised(article(look)), traits[0]),
        1 => format!("This {item} {} and is made for {made_for}.", traits[0]),
        2 => format!("Made for {made_for}, this {look} {item} {}.", traits[0]),
        _ => format!("{} and in {material}: {} {item} for {made_for}.", capitalised(look), article(item)),
    };
    let second = match opening {
        1 | 2 => format!("It is made of {material} and {}.", traits[1]),
        _ => format!("It {}.", traits[1]),
    };
    format!("{first} {second} {}", pick(rng, CLOSERS))
}

/// A review's title and body. Some have nothing more to say.
pub(super) fn review(rng: &mut StdRng, group: &Group, item: &str, rating: i32) -> (String, Option<String>) {
    let verdicts = VERDICTS[(rating - 1) as usize];
    let title = pick(rng, verdicts).to_string();
    if rng.random_range(0..10) == 0 {
        return (title, None);
    }
    let (made_for, praised) = (pick(rng, group.uses), pick(rng, group.traits));
    let body = match (rating, rng.random_bool(0.5)) {
        (4.., true) => format!("Bought for {made_for}. It {praised}, as promised."),
        (4.., false) => format!("My {item} {praised}; I would not be without it."),
        (3, true) => format!("It {praised}, but I had hoped for more."),
        (3, false) => format!("For {made_for} it will do."),
        (_, true) => format!("They say that it {praised}. Mine is another story."),
        (_, false) => format!("Not made for {made_for}, whatever the description says."),
    };
    (title, Some(body))
}

fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

fn capitalised(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().collect::<String>() + chars.as_str())
}
