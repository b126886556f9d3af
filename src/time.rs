//! The two clocks: Kafka's offsets ([`Position`]) and the engine's [`Epoch`]. What binds one to the other is data,
//! never arithmetic. A position only moves forward; nothing here knows what an event says.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, SerializeMap, Serializer};

/// The engine's clock: totally ordered; each epoch binds to one [`Position`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// An offset inside one partition. As an end it is exclusive: the next offset to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Offset(pub i64);

/// One partition of one topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition {
    pub topic: Arc<str>,
    pub number: i32,
}

impl Partition {
    pub fn new(topic: impl Into<Arc<str>>, number: i32) -> Self {
        Partition { topic: topic.into(), number }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.number)
    }
}

/// Where one message is. As text: `topic:partition:offset`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Coordinates {
    pub partition: Partition,
    pub offset: Offset,
}

impl fmt::Display for Coordinates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.partition.topic, self.partition.number, self.offset.0)
    }
}

impl FromStr for Coordinates {
    type Err = String;

    fn from_str(text: &str) -> Result<Coordinates, String> {
        let mut parts = text.rsplitn(3, ':');
        let offset = parts.next().and_then(|offset| offset.parse().ok());
        let number = parts.next().and_then(|number| number.parse().ok());
        match (parts.next().filter(|topic| !topic.is_empty()), number, offset) {
            (Some(topic), Some(number), Some(offset)) => {
                Ok(Coordinates { partition: Partition::new(topic, number), offset: Offset(offset) })
            }
            _ => Err("coordinates are topic:partition:offset, such as shop.public.product:0:42".into()),
        }
    }
}

/// Where we are in the input: for each partition the next offset to read. There is no way back: [`Position::advance`]
/// never lowers an offset. As JSON: `{topic: {partition: next offset}}`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position(BTreeMap<Partition, Offset>);

impl Position {
    /// The next offset of `partition`; `None` if nothing of it was read.
    pub fn get(&self, partition: &Partition) -> Option<Offset> {
        self.0.get(partition).copied()
    }

    /// Moves `partition` forward to `next`; a lower `next` changes nothing. Says whether it moved.
    pub fn advance(&mut self, partition: &Partition, next: Offset) -> bool {
        match self.0.get_mut(partition) {
            Some(now) if *now >= next => false,
            Some(now) => {
                *now = next;
                true
            }
            None => {
                self.0.insert(partition.clone(), next);
                true
            }
        }
    }

    /// Moves every partition of `other` forward.
    pub fn join(&mut self, other: &Position) {
        for (partition, next) in &other.0 {
            self.advance(partition, *next);
        }
    }

    /// Whether everything that `other` has read was read here too.
    pub fn covers(&self, other: &Position) -> bool {
        other.0.iter().all(|(p, next)| *next <= Offset(0) || self.get(p).is_some_and(|mine| mine >= *next))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Partition, Offset)> {
        self.0.iter().map(|(p, next)| (p, *next))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(Partition, Offset)> for Position {
    fn from_iter<I: IntoIterator<Item = (Partition, Offset)>>(pairs: I) -> Self {
        let mut position = Position::default();
        for (partition, next) in pairs {
            position.advance(&partition, next);
        }
        position
    }
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut topics: BTreeMap<&str, BTreeMap<i32, Offset>> = BTreeMap::new();
        for (p, next) in &self.0 {
            topics.entry(&p.topic).or_default().insert(p.number, *next);
        }
        let mut map = serializer.serialize_map(Some(topics.len()))?;
        for (topic, partitions) in topics {
            map.serialize_entry(topic, &partitions)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let topics = BTreeMap::<String, BTreeMap<i32, Offset>>::deserialize(deserializer)?;
        Ok(topics
            .into_iter()
            .flat_map(|(topic, partitions)| {
                let topic: Arc<str> = topic.into();
                partitions.into_iter().map(move |(n, next)| (Partition::new(topic.clone(), n), next))
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinates_are_read_as_they_are_written() {
        let text = "shop.public.item:1:42";
        let read: Coordinates = text.parse().unwrap();
        assert_eq!((read.partition.clone(), read.offset), (Partition::new("shop.public.item", 1), Offset(42)));
        assert_eq!(read.to_string(), text);
        for wrong in ["", "item", "item:1", ":1:2", "item:1:x", "item:x:2", "item:1:2:"] {
            assert!(wrong.parse::<Coordinates>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_position_has_no_way_back() {
        let p = Partition::new("t", 0);
        let mut position = Position::default();
        assert!(position.advance(&p, Offset(5)));
        assert!(!position.advance(&p, Offset(3)));
        assert_eq!(position.get(&p), Some(Offset(5)));
    }

    #[test]
    fn a_position_is_json_by_topic_and_partition() {
        let position: Position =
            [(Partition::new("t", 1), Offset(7)), (Partition::new("t", 0), Offset(2))].into_iter().collect();
        let json = serde_json::to_string(&position).unwrap();
        assert_eq!(json, r#"{"t":{"0":2,"1":7}}"#);
        assert_eq!(serde_json::from_str::<Position>(&json).unwrap(), position);
    }

    #[test]
    fn covering_ignores_what_was_never_read() {
        let none = Position::default();
        let zero: Position = [(Partition::new("t", 0), Offset(0))].into_iter().collect();
        let one: Position = [(Partition::new("t", 0), Offset(1))].into_iter().collect();
        assert!(none.covers(&zero) && one.covers(&zero) && !none.covers(&one));
    }
}
