//! TPC-H's population: rows of the eight tables, after the distributions of the public specification.
//!
//! The invariant: the same seed and scale make the same rows. Values come from their specified domains, so each query has the selectivity
//! that it was made for; the digits are our own generator's, not those of `dbgen`.

use std::sync::Arc;

use chrono::NaiveDate;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use super::tables::{Record, Rows, Table, Value};
use super::words::*;

/// Days since 1970.
fn day(year: i32, month: u32, day: u32) -> i64 {
    let date = NaiveDate::from_ymd_opt(year, month, day).expect("a day of the calendar");
    i64::from(date.to_epoch_days())
}

/// Makes rows.
pub(super) struct Maker {
    pub rng: StdRng,
    pub suppliers: i64,
    pub parts: i64,
    pub customers: i64,
    /// How many orders were made; the next one takes its key from it.
    pub orders: i64,
    clerks: i64,
    /// One in so many suppliers has complaints, and one in so many is recommended.
    remarked_every: i64,
    first_day: i64,
    last_day: i64,
    /// The day that the data is seen from: what is later has not been shipped or received.
    today: i64,
    colours: Vec<&'static str>,
}

/// A row, from values of any kind.
macro_rules! record {
    ($($value:expr),+ $(,)?) => { Box::from([$(Value::from($value)),+]) };
}

impl Maker {
    pub fn new(seed: u64, scale: f64) -> Maker {
        // At least four: each part has four suppliers.
        let of = |count: f64| ((count * scale).round() as i64).max(4);
        Maker {
            rng: StdRng::seed_from_u64(seed),
            suppliers: of(10_000.0),
            parts: of(200_000.0),
            customers: of(150_000.0),
            orders: 0,
            clerks: of(1000.0),
            // At small scales more often than is specified, so that there are some.
            remarked_every: (of(10_000.0) / 5).clamp(2, 2000),
            first_day: day(1992, 1, 1),
            last_day: day(1998, 12, 31) - 151,
            today: day(1995, 6, 17),
            colours: COLOURS.split_whitespace().collect(),
        }
    }

    /// All rows of a scale factor, by table.
    pub fn populate(&mut self, scale: f64) -> [Rows; 8] {
        let mut tables = Table::ALL.map(Rows::new);
        let mut put = |table: Table, row: Record| tables[table as usize].put(row);
        for key in 0..REGIONS.len() {
            put(Table::Region, self.region(key as i64));
        }
        for key in 0..NATIONS.len() {
            put(Table::Nation, self.nation(key as i64));
        }
        for key in 1..=self.suppliers {
            put(Table::Supplier, self.supplier(key));
        }
        for key in 1..=self.parts {
            put(Table::Part, self.part(key));
            for nth in 0..4 {
                put(Table::PartSupp, self.part_supplier(key, nth));
            }
        }
        for key in 1..=self.customers {
            put(Table::Customer, self.customer(key));
        }
        for _ in 0..((1_500_000.0 * scale).round() as i64).max(1) {
            let (order, lines) = self.order();
            put(Table::Orders, order);
            lines.into_iter().for_each(|line| put(Table::LineItem, line));
        }
        tables
    }

    pub fn region(&mut self, key: i64) -> Record {
        record![key, REGIONS[key as usize], self.sentence(31, 115)]
    }

    pub fn nation(&mut self, key: i64) -> Record {
        let (name, region) = NATIONS[key as usize];
        record![key, name, region, self.sentence(31, 114)]
    }

    pub fn supplier(&mut self, key: i64) -> Record {
        let nation = self.nation_key();
        let comment = match self.rng.random_range(0..self.remarked_every) {
            0 => format!("{} Customer {} Complaints", self.sentence(10, 30), self.sentence(5, 20)),
            1 => format!("{} Customer {} Recommends", self.sentence(10, 30), self.sentence(5, 20)),
            _ => self.sentence(25, 100),
        };
        let (name, address, phone) = (format!("Supplier#{key:09}"), self.address(), self.phone(nation));
        record![key, name, address, nation, phone, self.balance(), comment]
    }

    pub fn part(&mut self, key: i64) -> Record {
        let mut colours = std::mem::take(&mut self.colours);
        let name = colours.partial_shuffle(&mut self.rng, 5).0.join(" ");
        self.colours = colours;
        let maker = self.rng.random_range(1..=5);
        let brand = format!("Brand#{maker}{}", self.rng.random_range(1..=5));
        let kind = TYPES.map(|words| self.one_of(words)).join(" ");
        let container = CONTAINERS.map(|words| self.one_of(words)).join(" ");
        let size = self.rng.random_range(1..=50_i64);
        let price = retail_price(key);
        let maker = format!("Manufacturer#{maker}");
        record![key, name, maker, brand, kind, size, container, price, self.sentence(5, 22)]
    }

    /// The `nth` of a part's four suppliers.
    pub fn part_supplier(&mut self, part: i64, nth: i64) -> Record {
        let supplier = self.supplier_of(part, nth);
        let (quantity, cost) = (self.rng.random_range(1..=9999_i64), self.rng.random_range(100..=100_000_i64));
        record![part, supplier, quantity, cost, self.sentence(49, 198)]
    }

    pub fn customer(&mut self, key: i64) -> Record {
        let nation = self.nation_key();
        let (name, address, phone) = (format!("Customer#{key:09}"), self.address(), self.phone(nation));
        let (balance, segment) = (self.balance(), self.one_of(SEGMENTS));
        record![key, name, address, nation, phone, balance, segment, self.sentence(29, 116)]
    }

    /// The next order, with its lines.
    pub fn order(&mut self) -> (Record, Vec<Record>) {
        // Keys are sparse: of each 32 the first 8.
        let key = self.orders / 8 * 32 + self.orders % 8 + 1;
        self.orders += 1;
        let date = self.order_date();
        let lines: Vec<Record> = (1..=self.rng.random_range(1..=7)).map(|n| self.line(key, n, date)).collect();
        let open = lines.iter().filter(|line| line[Table::LineItem.column("l_linestatus")] == "O".into()).count();
        let status = match open {
            0 => "F",
            open if open == lines.len() => "O",
            _ => "P",
        };
        let (customer, total) = (self.ordering_customer(), total_price(&lines));
        let (priority, clerk) =
            (self.one_of(PRIORITIES), format!("Clerk#{:09}", self.rng.random_range(1..=self.clerks)));
        (record![key, customer, status, total, date, priority, clerk, 0, self.sentence(19, 78)], lines)
    }

    /// A line of an order of that date.
    pub fn line(&mut self, order: i64, number: i64, order_date: i64) -> Record {
        let part = self.rng.random_range(1..=self.parts);
        let nth = self.rng.random_range(0..4);
        let supplier = self.supplier_of(part, nth);
        let quantity = self.rng.random_range(1..=50_i64);
        let (discount, tax) = (self.rng.random_range(0..=10_i64), self.rng.random_range(0..=8_i64));
        let [shipped, committed, received] = self.dates(order_date);
        let (flag, status) = self.flag_and_status(shipped, received);
        record![
            order,
            number,
            part,
            supplier,
            quantity * 100,
            quantity * retail_price(part),
            discount,
            tax,
            flag,
            status,
            shipped,
            committed,
            received,
            self.one_of(INSTRUCTIONS),
            self.one_of(MODES),
            self.sentence(10, 43),
        ]
    }

    /// A day that an order may be of.
    pub fn order_date(&mut self) -> i64 {
        self.rng.random_range(self.first_day..=self.last_day)
    }

    /// When a line of an order of that date is shipped, promised and received.
    pub fn dates(&mut self, ordered: i64) -> [i64; 3] {
        let shipped = ordered + self.rng.random_range(1..=121);
        let committed = ordered + self.rng.random_range(30..=90);
        [shipped, committed, shipped + self.rng.random_range(1..=30)]
    }

    pub fn flag_and_status(&mut self, shipped: i64, received: i64) -> (&'static str, &'static str) {
        let flag = if received <= self.today { self.one_of(&["R", "A"]) } else { "N" };
        (flag, if shipped > self.today { "O" } else { "F" })
    }

    /// A third of the customers never orders.
    pub fn ordering_customer(&mut self) -> i64 {
        loop {
            let key = self.rng.random_range(1..=self.customers);
            if key % 3 != 0 {
                return key;
            }
        }
    }

    pub fn nation_key(&mut self) -> i64 {
        self.rng.random_range(0..NATIONS.len() as i64)
    }

    /// A phone number; its country code is the nation's key and 10.
    pub fn phone(&mut self, nation: i64) -> String {
        let rng = &mut self.rng;
        let (area, exchange, line) =
            (rng.random_range(100..=999), rng.random_range(100..=999), rng.random_range(1000..=9999));
        format!("{}-{area}-{exchange}-{line}", nation + 10)
    }

    pub fn balance(&mut self) -> i64 {
        self.rng.random_range(-99_999..=999_999)
    }

    pub fn one_of(&mut self, words: &[&'static str]) -> &'static str {
        words.choose(&mut self.rng).expect("no domain is empty")
    }

    /// A comment of a length between these two.
    pub fn sentence(&mut self, shortest: usize, longest: usize) -> String {
        let length = self.rng.random_range(shortest..=longest);
        let mut text = String::with_capacity(length + 16);
        for words in [QUALITIES, THINGS, VERBS, ADVERBS].into_iter().cycle() {
            if text.len() >= length {
                break;
            }
            text.push_str(self.one_of(words));
            text.push(' ');
        }
        text.truncate(length);
        text
    }

    fn address(&mut self) -> Arc<str> {
        const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz ,ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
        let length = self.rng.random_range(10..=40);
        let letters = (0..length).map(|_| char::from(LETTERS[self.rng.random_range(0..LETTERS.len())]));
        letters.collect::<String>().into()
    }

    /// The `nth` of the four suppliers of a part: near ones for near parts, and all suppliers equally often.
    fn supplier_of(&self, part: i64, nth: i64) -> i64 {
        let suppliers = self.suppliers;
        (part + nth * (suppliers / 4 + (part - 1) / suppliers)) % suppliers + 1
    }
}

/// In hundredths.
pub(super) fn retail_price(part: i64) -> i64 {
    90_000 + part / 10 % 20_001 + 100 * (part % 1000)
}

/// What an order of these lines costs, in hundredths.
pub(super) fn total_price(lines: &[Record]) -> i64 {
    let column = |line: &Record, name: &str| line[Table::LineItem.column(name)].number();
    let price = |line: &Record| {
        column(line, "l_extendedprice") * (100 + column(line, "l_tax")) * (100 - column(line, "l_discount")) / 10_000
    };
    lines.iter().map(price).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_rows() {
        let make = |seed| Maker::new(seed, 0.001).populate(0.001).map(|rows| rows.batch().unwrap());
        assert_eq!(make(3), make(3));
        assert_ne!(make(3), make(4));
    }

    #[test]
    fn tables_have_their_sizes() {
        let sizes = Maker::new(1, 0.01).populate(0.01).map(|rows| rows.len());
        assert_eq!(sizes[..4], [5, 25, 100, 2000]);
        // At small scales some of a part's four suppliers are the same one.
        assert!((7500..=8000).contains(&sizes[4]), "{sizes:?}");
        assert_eq!(sizes[5..7], [1500, 15_000]);
        assert!((57_000..63_000).contains(&sizes[7]), "{sizes:?}");
    }
}
