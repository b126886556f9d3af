//! The shop against what a reader of its topics makes of them, and the shipped models against the shop.

mod meant;

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{ArrayRef, RecordBatch};
use serde_json::{Value, json};
use warp::http::Method;

use self::meant::{View, expected};
use super::*;
use crate::dataflow::{Engine, EpochOutput, Plan};
use crate::decode::{Decoded, Decoder, Op, RegistryClient, RowType};
use crate::engine;
use crate::source::Source;
use crate::source::kafka::KafkaSource;
use crate::time::{Epoch, Position};

/// Rows by their keys, both in row format.
type Latest = BTreeMap<Box<[u8]>, Arc<[u8]>>;

/// A shop and a reader of all that it writes.
struct Street {
    shop: Shop,
    source: KafkaSource,
    /// Of whole rows.
    decoders: Vec<Decoder>,
    row_types: Vec<Arc<RowType>>,
    /// Of what the models read.
    lean_decoders: Vec<Decoder>,
    lean_types: Vec<Arc<RowType>>,
    plan: Plan,
    read: Position,
    /// The latest rows of each table by their keys.
    tables: Vec<Latest>,
    /// Events of each table by kind: snapshot, create, update, delete, tombstone.
    counts: [[u64; 5]; 5],
    config: Config,
    registry: Registry,
    _broker: Broker,
    _folder: tempfile::TempDir,
}

impl Street {
    /// A shop that has written nothing but its categories and brands.
    async fn open(seed: u64, products: usize) -> Street {
        let broker = Broker::start(&TOPICS).unwrap();
        let registry = Registry::start().await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let listen = (std::net::Ipv4Addr::LOCALHOST, 0).into();
        let config = product_dataflow(folder.path(), &broker.bootstrap_servers(), &registry.url(), listen).unwrap();
        let (plan, lean_types) = engine::plan(&config).unwrap_or_else(|problems| panic!("{problems:?}"));
        let row_types: Vec<_> = config.sources.iter().map(|s| Arc::new(RowType::from_contract(s).unwrap())).collect();
        let schemas = Arc::new(RegistryClient::new(&config.registry).unwrap());
        let decoders = |row_types: &[Arc<RowType>]| -> Vec<Decoder> {
            let of = config.sources.iter().zip(row_types).enumerate();
            of.map(|(n, (s, r))| Decoder::new(n, s, r.clone(), schemas.clone()).unwrap()).collect()
        };
        let (decoders, lean_decoders) = (decoders(&row_types), decoders(&lean_types));
        let topics: Vec<_> = config.sources.iter().map(|s| s.topic.clone()).collect();
        let mut source = KafkaSource::new(&config.kafka, &topics).unwrap();
        source.seek(&Position::default()).unwrap();
        let producer = Producer::new(&broker.bootstrap_servers()).unwrap();
        Street {
            shop: Shop::new(seed, products, producer, &registry).unwrap(),
            source,
            decoders,
            row_types,
            lean_decoders,
            lean_types,
            plan,
            read: Position::default(),
            tables: vec![BTreeMap::new(); 5],
            counts: Default::default(),
            config,
            registry,
            _broker: broker,
            _folder: folder,
        }
    }

    /// Puts all products on the shelves.
    fn snapshot(&mut self) {
        let ids = self.shop.ids();
        ids.iter().for_each(|id| self.shop.snapshot(*id, Some(id) == ids.last()).unwrap());
    }

    /// Reads what was written since and applies it to the tables; hands on what the models read of it.
    async fn follow(&mut self) -> Vec<Decoded> {
        self.shop.flush().unwrap();
        let written = self.shop.written();
        let started = Instant::now();
        let mut all = Vec::new();
        while !self.read.covers(&written) {
            assert!(started.elapsed() < Duration::from_secs(60), "{:?} of {written:?} came", self.read);
            let Some(batch) = self.source.poll(Duration::from_millis(50)).unwrap() else { continue };
            let n = self.config.sources.iter().position(|s| s.topic == batch.partition.topic).unwrap();
            let decoded = self.decoders[n].decode(&batch).await.unwrap();
            assert!(decoded.rejects.is_empty(), "{:?}", decoded.rejects);
            self.read.advance(&decoded.partition, decoded.end);
            for change in &decoded.changes {
                match &change.op {
                    Op::Upsert { row, unavailable: None } => {
                        self.tables[n].insert(change.key.clone(), row.clone());
                    }
                    Op::Delete => drop(self.tables[n].remove(&change.key)),
                    other => panic!("the shop does not do {other:?}"),
                }
            }
            let c = decoded.counts;
            for (sum, more) in self.counts[n].iter_mut().zip([c.snapshot, c.create, c.update, c.delete, c.tombstone]) {
                *sum += more;
            }
            all.push(self.lean_decoders[n].decode(&batch).await.unwrap());
        }
        all
    }

    /// A table as it was read, by its key.
    fn columns(&self, table: Table) -> Vec<ArrayRef> {
        let n = table as usize;
        self.row_types[n].rows_to_columns(self.tables[n].values().map(|row| &**row)).unwrap()
    }

    /// The shipped models over the tables, in batch.
    async fn view(&self) -> View {
        let tables = Table::ALL.map(|table| {
            RecordBatch::try_new(self.row_types[table as usize].schema().clone(), self.columns(table)).unwrap()
        });
        View::from(&self.plan.batch_view(tables.to_vec()).await.unwrap())
    }
}

fn trade(shop: &mut Shop, steps: usize) -> Vec<Renamed> {
    let mut renamed = Vec::new();
    for n in 0..steps {
        if n == steps / 2 {
            shop.add_column();
        }
        renamed.extend(shop.step().unwrap());
    }
    renamed
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_is_what_the_shop_has() {
    let mut street = Street::open(3, 120).await;
    street.snapshot();
    street.follow().await;
    for round in 0..3 {
        trade(&mut street.shop, 1000);
        street.shop.rename_category(5 + round, "Something else").unwrap();
        street.shop.rename_brand(5 + round, "Somebody else").unwrap();
        street.follow().await;
        for table in Table::ALL {
            let expected = expected(&street.shop, table, &street.row_types[table as usize]);
            assert!(street.columns(table) == expected, "{} after round {round}", table.name());
        }
    }
    // Each table sees the kinds of events that it is there for.
    let kinds = street.counts.map(|kinds| kinds.map(|count| count > 0));
    let [product, category, brand, price, review] = kinds;
    assert_eq!([product, price, review], [[true; 5]; 3]);
    assert_eq!([category, brand], [[true, false, true, false, false]; 2]);
    for [_, _, _, deletes, tombstones] in street.counts {
        assert_eq!(deletes, tombstones, "a delete is followed by its tombstone");
    }
    // Both schemas of the product's events were in use.
    let used = |id: u32| street.registry.requests(id);
    let [before, after] = [1, 2].map(used);
    assert!(before > 0 && after > 0, "the table of products has gained a column");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_makes_one_shop() {
    let tables = async |seed: u64| {
        let mut street = Street::open(seed, 60).await;
        let renamed = trade(&mut street.shop, 500);
        let shop = &street.shop;
        json!([
            shop.products().collect::<Vec<_>>(),
            shop.categories().collect::<Vec<_>>(),
            shop.brands().collect::<Vec<_>>(),
            shop.prices().collect::<Vec<_>>(),
            shop.reviews().collect::<Vec<_>>(),
            renamed,
        ])
    };
    let (one, same, other) = (tables(5).await, tables(5).await, tables(6).await);
    assert!(one == same && one[0] != other[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_models_give_the_text_and_figures_that_the_shop_means() {
    let mut street = Street::open(11, 150).await;
    street.snapshot();
    let shop = &mut street.shop;
    trade(shop, 1500);
    let [one, two] =
        [0, 1].map(|n| shop.products().filter(|p| p.is_listed() && p.brand_id.is_some()).nth(n).unwrap().clone());
    shop.rename_category(one.category_id, "Shelters").unwrap();
    shop.rename_brand(one.brand_id.unwrap(), " Nordlys ").unwrap();
    shop.edit(one.id, Some("Tarp Fen 7".into()), Some("Keeps the rain off.".into()), Some(4_999)).unwrap();
    street.follow().await;
    let view = street.view().await;

    // By hand: names with the path of the category, the brand without its blanks.
    let above = street.shop.category(street.shop.category(one.category_id).unwrap().parent_id.unwrap()).unwrap();
    let top = street.shop.category(above.parent_id.unwrap()).unwrap();
    let path = format!("{} > {} > Shelters", top.name, above.name);
    let shown = &view.0[&one.id];
    assert_eq!(shown.text, format!("Tarp Fen 7. Brand: Nordlys. Category: {path}. Keeps the rain off."));
    assert_eq!((shown.path.as_str(), shown.cents), (path.as_str(), 4_999));

    // All of them, once the name with blanks is gone.
    street.shop.rename_brand(one.brand_id.unwrap(), "Nordlys").unwrap();
    street.follow().await;
    let expected = View::of(&street.shop);
    assert!(expected.0.len() > 100 && expected.0.values().any(|row| row.brand.is_none()));
    assert!(expected.0.values().any(|row| row.rating.is_none()) && expected.0.values().any(|row| row.reviews > 2));
    assert_eq!(street.view().await, expected);

    // A product that has nothing to say of itself.
    street.shop.edit(two.id, Some("  ".into()), Some(String::new()), None).unwrap();
    street.follow().await;
    let shown = &street.view().await.0[&two.id];
    let brand = shown.brand.as_ref().unwrap();
    assert_eq!(shown.text, format!("Brand: {brand}. Category: {}", shown.path));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_change_changes() {
    let mut street = Street::open(2, 200).await;
    street.snapshot();
    let handle = Engine::start(street.plan.clone(), street.lean_types.clone(), 1).unwrap();
    let mut epoch = 0;
    let mut maintained = async |street: &mut Street| -> EpochOutput {
        epoch += 1;
        handle.send(Epoch(epoch), street.follow().await).unwrap();
        handle.recv(Duration::from_secs(30)).unwrap().expect("an epoch within 30 s")
    };
    let first = maintained(&mut street).await;
    assert_eq!((first.changes.len(), first.view_rows), (200, 200));
    let mut before = street.view().await;
    // The keys of changed rows and of changed texts, by the models in batch; the dataflow has to see as many.
    let mut change = async |street: &mut Street, what: &str| -> (BTreeSet<i64>, BTreeSet<i64>) {
        let output = maintained(street).await;
        let view = street.view().await;
        let (rows, texts) = view.changed(&before);
        assert_eq!(output.changes.len(), rows.len(), "{what}");
        before = view;
        (rows, texts)
    };
    let under = |street: &Street, category: i64| -> BTreeSet<i64> {
        let below = |p: &&Product| {
            let own = street.shop.category(p.category_id).unwrap();
            let parent = street.shop.category(own.parent_id.unwrap()).unwrap();
            [Some(own.id), Some(parent.id), parent.parent_id].contains(&Some(category))
        };
        street.shop.products().filter(|p| p.is_listed()).filter(below).map(|p| p.id).collect()
    };

    // A category: exactly its products, and all of their texts. Categories above have all that is below them.
    let shelf = street.shop.get(17).unwrap().category_id;
    let group = street.shop.category(shelf).unwrap().parent_id.unwrap();
    let department = street.shop.category(group).unwrap().parent_id.unwrap();
    for category in [shelf, group, department] {
        let renamed = street.shop.rename_category(category, &format!("Renamed {category}")).unwrap().unwrap();
        let expected = under(&street, category);
        let (rows, texts) = change(&mut street, "a category").await;
        assert!(rows == expected && texts == expected, "{rows:?}, {texts:?} are not {expected:?}");
        assert_eq!((renamed.products, street.shop.listed_in(category)), (expected.len(), expected.len()));
        assert!(expected.contains(&17));
    }
    assert!(street.shop.listed_in(shelf) < street.shop.listed_in(department));

    // A brand: its products.
    let renamed = street.shop.rename_brand(4, "Tamarillo").unwrap().unwrap();
    let (rows, texts) = change(&mut street, "a brand").await;
    assert!(rows == texts && rows.len() == renamed.products && !rows.is_empty());

    // Prices and stock change rows and no text.
    street.shop.edit(17, None, None, Some(123)).unwrap();
    assert_eq!(change(&mut street, "a price").await, (BTreeSet::from([17]), BTreeSet::new()));
    street.shop.edit(17, None, Some("Another text.".into()), None).unwrap();
    assert_eq!(change(&mut street, "a text").await, (BTreeSet::from([17]), BTreeSet::from([17])));
    // A product that goes takes its prices and reviews along; what is left does not notice.
    assert!(street.shop.prices().any(|p| p.product_id == 17));
    street.shop.delete(17).unwrap();
    assert_eq!(change(&mut street, "a delete").await, (BTreeSet::from([17]), BTreeSet::from([17])));
    let left = |table: Table| street.tables[table as usize].len();
    assert_eq!(
        [left(Table::Price), left(Table::Review)],
        [street.shop.prices().count(), street.shop.reviews().count()]
    );
    assert!(!street.shop.prices().any(|p| p.product_id == 17));

    // And a day of everything.
    trade(&mut street.shop, 1000);
    let output = maintained(&mut street).await;
    let expected = View::of(&street.shop);
    assert_eq!(street.view().await, expected);
    assert_eq!(output.view_rows, expected.0.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_office_counts_what_a_rename_embeds() {
    let mut street = Street::open(4, 40).await;
    street.snapshot();
    street.shop.flush().unwrap();
    let category = street.shop.get(1).unwrap().category_id;
    let (products, name) = (street.shop.listed_in(category), street.shop.category(category).unwrap().name.clone());
    let service = Service::start(street.config.clone(), Arc::new(|_| ())).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let shop = Arc::new(Mutex::new(street.shop));
    let office = Office::new(shop, Floor::default(), service.status().clone(), stop);
    let ask = async |method: Method, path: &str, id: i64, body: Value| {
        office.clone().answer(&method, path, id, body.to_string().into()).await
    };
    let rename = async |name: &str| ask(Method::PUT, "categories", category, json!({"name": name})).await;
    let embed = |asked: usize, cached: usize, computed: usize| {
        let counts = json!({"asked": asked, "cached": cached, "computed": computed});
        move |answer: &(warp::http::StatusCode, Value)| {
            assert_eq!(answer.0, 200, "{}", answer.1);
            assert_eq!((&answer.1["products"], &answer.1["embed"]), (&json!(products), &counts));
        }
    };
    embed(products, 0, products)(&rename("Things for the moon").await);
    // What was embedded once is known, whatever it is called meanwhile.
    embed(products, products, 0)(&rename(&name).await);
    embed(0, 0, 0)(&rename(&name).await);
    let (status, shown) = ask(Method::GET, "categories", category, Value::Null).await;
    assert_eq!((status.as_u16(), &shown["name"], &shown["products"]), (200, &json!(name), &json!(products)));
    let (status, brand) = ask(Method::PUT, "brands", 2, json!({"name": "Hollow"})).await;
    assert_eq!((status.as_u16(), &brand["embed"]["computed"]), (200, &brand["products"]));

    let refused = async |method: Method, path: &str, id: i64, body: Value| ask(method, path, id, body).await.0.as_u16();
    assert_eq!(refused(Method::PUT, "categories", 9999, json!({"name": "x"})).await, 404);
    assert_eq!(refused(Method::PUT, "categories", 1, json!({"name": " "})).await, 400);
    assert_eq!(refused(Method::PUT, "brands", 1, json!({"title": "x"})).await, 400);
    assert_eq!(refused(Method::DELETE, "brands", 1, Value::Null).await, 405);
    assert_eq!(refused(Method::GET, "orders", 1, Value::Null).await, 404);
    assert_eq!(refused(Method::GET, "products", 1, Value::Null).await, 200);
    for price in [json!(-1), json!(1e300)] {
        assert_eq!(refused(Method::PUT, "products", 1, json!({"list_price": price})).await, 400);
    }
    assert_eq!(refused(Method::PUT, "products", 1, json!(["teapot", null, null])).await, 400);
    // Whoever is answered finds what was changed.
    let (status, changed) = ask(Method::PUT, "products", 1, json!({"name": "Space teapot"})).await;
    assert_eq!(status, 200, "{changed}");
    assert!(changed["searchable_after_ms"].is_u64(), "{changed}");
    let item: Value =
        reqwest::get(format!("http://{}/v1/items/1", service.address())).await.unwrap().json().await.unwrap();
    assert_eq!(item["row"]["name"], "Space teapot");
    service.stop().await;
}

#[test]
fn the_program_has_every_file_of_the_dataflow() {
    fn walk(root: &Path, below: &Path, found: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(root.join(below)).unwrap() {
            let path = below.join(entry.unwrap().file_name());
            match root.join(&path).is_dir() {
                true => walk(root, &path, found),
                false => {
                    let text = std::fs::read_to_string(root.join(&path)).unwrap();
                    found.insert(path.to_string_lossy().into_owned(), text);
                }
            }
        }
    }
    let mut found = BTreeMap::new();
    for folder in ["dataflows/product", "schemas/avro"] {
        walk(Path::new(env!("CARGO_MANIFEST_DIR")), Path::new(folder), &mut found);
    }
    let shipped: BTreeMap<String, String> =
        FILES.iter().map(|(path, text)| (path.to_string(), text.to_string())).collect();
    assert_eq!(shipped, found);
}
