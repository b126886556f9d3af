//! Changes of a shop that trades: orders come and go with their lines, as TPC-H's refresh functions have it, and everything else changes too.
//!
//! The invariant: the same seed makes the same changes, and every change is made to the tables that it was drawn from. References may come to
//! lead nowhere, as they do in a stream of changes of many tables; a new value comes from its column's domain, so that queries keep answers.

use rand::Rng;

use super::data::{Maker, retail_price, total_price};
use super::tables::{Event, Key, Record, Rows, Table, Value};
use super::words;

/// Most of a table's rows that are deleted at a time, as a part of all.
const GONE_MAX: usize = 50;

/// The tables as they stand, and what may happen to them next.
pub(super) struct Shop {
    tables: [Rows; 8],
    maker: Maker,
    /// Keys of suppliers, parts, stock and customers that were deleted and may come back.
    gone: [Vec<Key>; 8],
}

impl Shop {
    pub fn new(seed: u64, scale: f64) -> Shop {
        let mut maker = Maker::new(seed, scale);
        Shop { tables: maker.populate(scale), maker, gone: Default::default() }
    }

    pub fn rows(&self, table: Table) -> &Rows {
        &self.tables[table as usize]
    }

    /// Makes one random change and adds what it wrote: a row, or an order with its lines.
    pub fn change(&mut self, events: &mut Vec<Event>) {
        match self.maker.rng.random_range(0..1000) {
            0..140 => self.order_comes(events),
            140..260 => self.order_goes(events),
            260..480 => self.line_is_revalued(events),
            480..580 => self.line_is_rescheduled(events),
            580..620 => self.line_goes(events),
            620..660 => self.line_comes(events),
            660..750 => self.order_changes(events),
            750..840 => self.customer_changes(events),
            840..890 => self.part_changes(events),
            890..930 => self.stock_changes(events),
            930..950 => self.supplier_changes(events),
            950..965 => self.comes_or_goes(Table::Customer, events),
            965..975 => self.comes_or_goes(Table::Part, events),
            975..990 => self.comes_or_goes(Table::PartSupp, events),
            990..994 => self.comes_or_goes(Table::Supplier, events),
            994..999 => self.nothing_changes(events),
            _ => self.nation_moves(events),
        }
    }

    fn order_comes(&mut self, events: &mut Vec<Event>) {
        let (order, lines) = self.maker.order();
        self.write(Table::Orders, order, events);
        for line in lines {
            self.write(Table::LineItem, line, events);
        }
    }

    fn order_goes(&mut self, events: &mut Vec<Event>) {
        let Some(order) = self.any(Table::Orders) else { return };
        let key = order[0].number();
        self.delete(Table::Orders, (key, 0), events);
        for number in 1..=7 {
            self.delete(Table::LineItem, (key, number), events);
        }
    }

    fn line_is_revalued(&mut self, events: &mut Vec<Event>) {
        let quantity = self.maker.rng.random_range(1..=50_i64);
        let (discount, tax) = (self.maker.rng.random_range(0..=10_i64), self.maker.rng.random_range(0..=8_i64));
        let which = self.maker.rng.random_range(0..3);
        self.edit(Table::LineItem, events, |line, set| {
            let part = line[Table::LineItem.column("l_partkey")].number();
            match which {
                0 => {
                    set("l_quantity", (quantity * 100).into());
                    set("l_extendedprice", (quantity * retail_price(part)).into());
                }
                1 => set("l_discount", discount.into()),
                _ => set("l_tax", tax.into()),
            }
        });
    }

    fn line_is_rescheduled(&mut self, events: &mut Vec<Event>) {
        let Some(line) = self.any(Table::LineItem) else { return };
        let ordered = self.order_date(line[0].number());
        let [shipped, committed, received] = self.maker.dates(ordered);
        let (flag, status) = self.maker.flag_and_status(shipped, received);
        let mode = self.maker.one_of(words::MODES);
        self.alter(Table::LineItem, line, events, |_, set| {
            set("l_shipdate", shipped.into());
            set("l_commitdate", committed.into());
            set("l_receiptdate", received.into());
            set("l_returnflag", flag.into());
            set("l_linestatus", status.into());
            set("l_shipmode", mode.into());
        });
    }

    fn line_goes(&mut self, events: &mut Vec<Event>) {
        let Some(line) = self.any(Table::LineItem) else { return };
        self.delete(Table::LineItem, (line[0].number(), line[1].number()), events);
    }

    /// An order gets a line, or another in the place of one.
    fn line_comes(&mut self, events: &mut Vec<Event>) {
        let Some(order) = self.any(Table::Orders) else { return };
        let number = self.maker.rng.random_range(1..=7);
        let line = self.maker.line(order[0].number(), number, order[Table::Orders.column("o_orderdate")].number());
        self.write(Table::LineItem, line, events);
    }

    fn order_changes(&mut self, events: &mut Vec<Event>) {
        let Some(order) = self.any(Table::Orders) else { return };
        let key = order[0].number();
        let (column, value): (_, Value) = match self.maker.rng.random_range(0..6) {
            0 => ("o_orderpriority", self.maker.one_of(words::PRIORITIES).into()),
            1 => ("o_orderstatus", self.maker.one_of(&["F", "O", "P"]).into()),
            2 => ("o_custkey", self.maker.ordering_customer().into()),
            3 => ("o_comment", self.maker.sentence(19, 78).into()),
            4 => ("o_orderdate", (self.order_date(key) + self.maker.rng.random_range(-30..=30)).into()),
            _ => {
                let lines: Vec<Record> =
                    (1..=7).filter_map(|n| self.rows(Table::LineItem).get((key, n)).cloned()).collect();
                ("o_totalprice", total_price(&lines).into())
            }
        };
        self.alter(Table::Orders, order, events, |_, set| set(column, value));
    }

    fn customer_changes(&mut self, events: &mut Vec<Event>) {
        let (nation, balance) = (self.maker.nation_key(), self.maker.balance());
        let (phone, segment) = (self.maker.phone(nation), self.maker.one_of(words::SEGMENTS));
        let which = self.maker.rng.random_range(0..4);
        self.edit(Table::Customer, events, |_, set| match which {
            0 | 1 => set("c_acctbal", balance.into()),
            2 => set("c_mktsegment", segment.into()),
            _ => {
                set("c_nationkey", nation.into());
                set("c_phone", phone.into());
            }
        });
    }

    /// A part becomes what a new one might have been, in one column or in all.
    fn part_changes(&mut self, events: &mut Vec<Event>) {
        let Some(part) = self.any(Table::Part) else { return };
        let fresh = self.maker.part(part[0].number());
        let which = self.maker.rng.random_range(0..=6);
        self.alter(Table::Part, part, events, |_, set| {
            let columns = ["p_name", "p_brand", "p_type", "p_size", "p_container", "p_mfgr"];
            let chosen = if which < columns.len() { &columns[which..=which] } else { &columns[..] };
            chosen.iter().for_each(|column| set(column, fresh[Table::Part.column(column)].clone()));
        });
    }

    fn stock_changes(&mut self, events: &mut Vec<Event>) {
        let (quantity, cost) =
            (self.maker.rng.random_range(1..=9999_i64), self.maker.rng.random_range(100..=100_000_i64));
        let costs = self.maker.rng.random_bool(0.5);
        self.edit(Table::PartSupp, events, |_, set| match costs {
            true => set("ps_supplycost", cost.into()),
            false => set("ps_availqty", quantity.into()),
        });
    }

    fn supplier_changes(&mut self, events: &mut Vec<Event>) {
        let Some(supplier) = self.any(Table::Supplier) else { return };
        let fresh = self.maker.supplier(supplier[0].number());
        let which = self.maker.rng.random_range(0..3);
        self.alter(Table::Supplier, supplier, events, |_, set| {
            let columns: &[&str] = [&["s_acctbal"][..], &["s_comment"], &["s_nationkey", "s_phone"]][which];
            columns.iter().for_each(|column| set(column, fresh[Table::Supplier.column(column)].clone()));
        });
    }

    /// Deletes a row, or brings one back that was deleted, as another.
    fn comes_or_goes(&mut self, table: Table, events: &mut Vec<Event>) {
        let (gone, rows) = (&self.gone[table as usize], self.rows(table).len());
        let goes = gone.is_empty() || gone.len() <= rows / GONE_MAX && self.maker.rng.random_bool(0.5);
        if goes {
            let Some(row) = self.any(table) else { return };
            let key = table.key(&row);
            self.gone[table as usize].push(key);
            self.delete(table, key, events);
            return;
        }
        let nth = self.maker.rng.random_range(0..self.gone[table as usize].len());
        let key = self.gone[table as usize].swap_remove(nth);
        let row = match table {
            Table::Customer => self.maker.customer(key.0),
            Table::Part => self.maker.part(key.0),
            Table::Supplier => self.maker.supplier(key.0),
            _ => {
                let mut stock = self.maker.part_supplier(key.0, 0);
                stock[1] = key.1.into();
                stock
            }
        };
        self.write(table, row, events);
    }

    /// Writes a row as it is.
    fn nothing_changes(&mut self, events: &mut Vec<Event>) {
        self.edit(Table::LineItem, events, |_, _| {});
    }

    /// A nation of the same name in another region.
    fn nation_moves(&mut self, events: &mut Vec<Event>) {
        let region = self.maker.rng.random_range(0..words::REGIONS.len() as i64);
        self.edit(Table::Nation, events, |_, set| set("n_regionkey", region.into()));
    }

    fn any(&mut self, table: Table) -> Option<Record> {
        self.tables[table as usize].any(&mut self.maker.rng).cloned()
    }

    fn order_date(&mut self, order: i64) -> i64 {
        let date = self.rows(Table::Orders).get((order, 0)).map(|o| o[Table::Orders.column("o_orderdate")].number());
        // A line whose order is gone keeps to no date.
        date.unwrap_or_else(|| self.maker.order_date())
    }

    fn edit(
        &mut self,
        table: Table,
        events: &mut Vec<Event>,
        edit: impl FnOnce(&[Value], &mut dyn FnMut(&str, Value)),
    ) {
        let Some(row) = self.any(table) else { return };
        self.alter(table, row, events, edit);
    }

    /// Writes the row with the columns that `edit` sets; it is given the row as it was.
    fn alter(
        &mut self,
        table: Table,
        row: Record,
        events: &mut Vec<Event>,
        edit: impl FnOnce(&[Value], &mut dyn FnMut(&str, Value)),
    ) {
        let mut altered = row.clone();
        edit(&row, &mut |column, value| altered[table.column(column)] = value);
        self.write(table, altered, events);
    }

    fn write(&mut self, table: Table, row: Record, events: &mut Vec<Event>) {
        self.tables[table as usize].put(row.clone());
        events.push(Event { table, row, deleted: false });
    }

    fn delete(&mut self, table: Table, key: Key, events: &mut Vec<Event>) {
        if let Some(row) = self.tables[table as usize].remove(key) {
            events.push(Event { table, row, deleted: true });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn events_lead_from_the_population_to_the_tables() {
        let mut shop = Shop::new(9, 0.001);
        let keyed = |shop: &Shop| -> BTreeMap<(Table, Key), Record> {
            let of = |table: Table| shop.rows(table).iter().map(move |row| ((table, table.key(row)), row.clone()));
            Table::ALL.into_iter().flat_map(of).collect()
        };
        let mut replayed = keyed(&shop);
        let mut events = Vec::new();
        while events.len() < 5000 {
            shop.change(&mut events);
        }
        let (mut deletes, mut seen) = (0, [0; 8]);
        for event in events {
            let key = (event.table, event.table.key(&event.row));
            seen[event.table as usize] += 1;
            match event.deleted {
                true => {
                    deletes += 1;
                    assert_eq!(replayed.remove(&key), Some(event.row), "a delete says what the row was");
                }
                false => drop(replayed.insert(key, event.row)),
            }
        }
        assert!(replayed == keyed(&shop));
        assert!(deletes > 500, "{deletes}");
        assert!(seen[1..].iter().all(|count| *count > 0), "{seen:?}");
    }

    #[test]
    fn deleted_rows_stay_few() {
        let mut shop = Shop::new(2, 0.002);
        let mut events = Vec::new();
        let before = shop.rows(Table::Customer).len();
        (0..2000).for_each(|_| shop.comes_or_goes(Table::Customer, &mut events));
        let after = shop.rows(Table::Customer).len();
        assert!(after < before && after > before - before / 20, "{before} {after}");
    }
}
