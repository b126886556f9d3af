//! A schema says what a writer's bytes mean: a tree of types, read from Avro's JSON or from the schema part of Connect's JSON.
//!
//! Both come to the same tree, with the attributes that Kafka Connect adds (`connect.name`, `connect.parameters`) kept on every
//! type, which general Avro parsers drop on primitives. Named types may refer to themselves; nodes are ids for that reason.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// Deepest nesting of a schema's own text.
const DEPTH_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NodeId(u32);

#[derive(Debug)]
pub(crate) struct Schema {
    nodes: Vec<Node>,
    pub root: NodeId,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub shape: Shape,
    /// Connect's name of the logical type, such as `io.debezium.time.Date`.
    pub name: Option<Box<str>>,
    /// Avro's own `logicalType`; what it means is overruled by `name`.
    pub logical: Option<Box<str>>,
    pub scale: Option<i64>,
    pub precision: Option<i64>,
    /// `freshet.type`: what a contract wants this type to become, where the default does not hold its values.
    pub wanted: Option<Box<str>>,
}

#[derive(Debug)]
pub(crate) enum Shape {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    Fixed(usize),
    Enum(Vec<Box<str>>),
    Array(NodeId),
    Map(NodeId),
    Union(Vec<NodeId>),
    Record(Record),
}

#[derive(Debug)]
pub(crate) struct Record {
    pub full_name: Box<str>,
    pub fields: Vec<Field>,
}

#[derive(Debug)]
pub(crate) struct Field {
    pub name: Box<str>,
    pub node: NodeId,
    pub default: Option<Value>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct SchemaError(String);

fn error<T>(text: impl Into<String>) -> Result<T, SchemaError> {
    Err(SchemaError(text.into()))
}

impl Schema {
    /// Reads an Avro schema's JSON text.
    pub fn from_avro(text: &str) -> Result<Schema, SchemaError> {
        let json: Value =
            serde_json::from_str(text).map_err(|e| SchemaError(format!("the schema is not JSON: {e}")))?;
        let mut parser = AvroParser { nodes: Vec::new(), names: HashMap::new() };
        let root = parser.node(&json, "", 0)?;
        Ok(Schema { nodes: parser.nodes, root })
    }

    /// Reads the schema part of a message of Connect's `JsonConverter`.
    pub fn from_connect(json: &Value) -> Result<Schema, SchemaError> {
        let mut nodes = Vec::new();
        let root = connect_node(&mut nodes, json, 0)?;
        Ok(Schema { nodes, root })
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// The record at `id`, looking through a union with null.
    pub fn record(&self, id: NodeId) -> Option<&Record> {
        match &self.node(self.optional(id).1).shape {
            Shape::Record(record) => Some(record),
            _ => None,
        }
    }

    /// Whether null is allowed at `id`, and what else is. A union of several types stays that union.
    pub fn optional(&self, id: NodeId) -> (bool, NodeId) {
        let Shape::Union(branches) = &self.node(id).shape else { return (false, id) };
        let is_null = |b: &NodeId| matches!(self.node(*b).shape, Shape::Null);
        let mut others = branches.iter().filter(|b| !is_null(b));
        match (others.next(), others.next()) {
            (Some(one), None) => (branches.iter().any(is_null), *one),
            _ => (branches.iter().any(is_null), id),
        }
    }
}

impl Record {
    pub fn field(&self, name: &str) -> Option<(usize, &Field)> {
        self.fields.iter().enumerate().find(|(_, f)| &*f.name == name)
    }
}

impl Node {
    fn new(shape: Shape) -> Node {
        Node { shape, name: None, logical: None, scale: None, precision: None, wanted: None }
    }
}

fn push(nodes: &mut Vec<Node>, node: Node) -> NodeId {
    nodes.push(node);
    NodeId((nodes.len() - 1) as u32)
}

fn primitive(name: &str) -> Option<Shape> {
    Some(match name {
        "null" => Shape::Null,
        "boolean" => Shape::Boolean,
        "int" => Shape::Int,
        "long" => Shape::Long,
        "float" => Shape::Float,
        "double" => Shape::Double,
        "bytes" => Shape::Bytes,
        "string" => Shape::String,
        _ => return None,
    })
}

struct AvroParser {
    nodes: Vec<Node>,
    names: HashMap<String, NodeId>,
}

impl AvroParser {
    fn node(&mut self, json: &Value, namespace: &str, depth: usize) -> Result<NodeId, SchemaError> {
        if depth > DEPTH_MAX {
            return error(format!("the schema is nested deeper than {DEPTH_MAX}"));
        }
        match json {
            Value::String(name) => self.named(name, namespace),
            Value::Array(branches) => {
                let branches =
                    branches.iter().map(|b| self.node(b, namespace, depth + 1)).collect::<Result<Vec<_>, _>>()?;
                if branches.is_empty() {
                    return error("a union has no branches");
                }
                Ok(push(&mut self.nodes, Node::new(Shape::Union(branches))))
            }
            Value::Object(object) => self.object(object, namespace, depth),
            other => error(format!("{other} is not an Avro type")),
        }
    }

    fn named(&mut self, name: &str, namespace: &str) -> Result<NodeId, SchemaError> {
        if let Some(shape) = primitive(name) {
            return Ok(push(&mut self.nodes, Node::new(shape)));
        }
        let full = full_name(name, namespace);
        let found = self.names.get(&full).or_else(|| self.names.get(name));
        found.copied().ok_or_else(|| SchemaError(format!("the type {full} is used but not defined")))
    }

    fn object(&mut self, object: &Map<String, Value>, namespace: &str, depth: usize) -> Result<NodeId, SchemaError> {
        let kind = match object.get("type") {
            Some(Value::String(kind)) => kind.as_str(),
            // `{"type": {...}, "connect.name": ...}`: the outer attributes belong to the inner type.
            Some(inner) => {
                let id = self.node(inner, namespace, depth + 1)?;
                attributes(&mut self.nodes[id.0 as usize], object);
                return Ok(id);
            }
            None => return error("a type has no \"type\""),
        };
        let shape = match kind {
            "record" | "error" => return self.record(object, namespace, depth),
            "enum" => {
                let symbols = list(object, "symbols")?.iter().map(|s| s.as_str().map(Box::from)).collect::<Option<_>>();
                let symbols = symbols.ok_or_else(|| SchemaError("a symbol of an enum is not text".into()))?;
                return self.define(object, namespace, Shape::Enum(symbols));
            }
            "fixed" => {
                let size = object.get("size").and_then(Value::as_u64).filter(|s| *s <= i32::MAX as u64);
                let size = size.ok_or_else(|| SchemaError("a fixed type has no size".into()))?;
                return self.define(object, namespace, Shape::Fixed(size as usize));
            }
            "array" => Shape::Array(self.part(object, "items", namespace, depth)?),
            "map" => Shape::Map(self.part(object, "values", namespace, depth)?),
            other => match primitive(other) {
                Some(shape) => shape,
                None => return self.named(other, namespace),
            },
        };
        let mut node = Node::new(shape);
        attributes(&mut node, object);
        Ok(push(&mut self.nodes, node))
    }

    fn part(
        &mut self,
        object: &Map<String, Value>,
        key: &str,
        namespace: &str,
        depth: usize,
    ) -> Result<NodeId, SchemaError> {
        match object.get(key) {
            Some(json) => self.node(json, namespace, depth + 1),
            None => error(format!("a type has no \"{key}\"")),
        }
    }

    fn define(&mut self, object: &Map<String, Value>, namespace: &str, shape: Shape) -> Result<NodeId, SchemaError> {
        let (full, _) = naming(object, namespace)?;
        let mut node = Node::new(shape);
        attributes(&mut node, object);
        let id = push(&mut self.nodes, node);
        if self.names.insert(full.clone(), id).is_some() {
            return error(format!("the type {full} is defined twice"));
        }
        Ok(id)
    }

    fn record(&mut self, object: &Map<String, Value>, namespace: &str, depth: usize) -> Result<NodeId, SchemaError> {
        let (full, inner) = naming(object, namespace)?;
        // The name is known before the fields are read: a record may hold itself.
        let id = self.define(
            object,
            namespace,
            Shape::Record(Record { full_name: full.as_str().into(), fields: Vec::new() }),
        )?;
        let mut fields: Vec<Field> = Vec::new();
        for field in list(object, "fields")? {
            let field = field.as_object().ok_or_else(|| SchemaError(format!("a field of {full} is not an object")))?;
            let Some(name) = field.get("name").and_then(Value::as_str) else {
                return error(format!("a field of {full} has no name"));
            };
            if fields.iter().any(|f| &*f.name == name) {
                return error(format!("{full} has the field {name} twice"));
            }
            let node = self.part(field, "type", &inner, depth)?;
            fields.push(Field { name: name.into(), node, default: field.get("default").cloned() });
        }
        self.nodes[id.0 as usize].shape = Shape::Record(Record { full_name: full.into(), fields });
        Ok(id)
    }
}

fn list<'a>(object: &'a Map<String, Value>, key: &str) -> Result<&'a Vec<Value>, SchemaError> {
    object.get(key).and_then(Value::as_array).ok_or_else(|| SchemaError(format!("a type has no list of \"{key}\"")))
}

fn full_name(name: &str, namespace: &str) -> String {
    if name.contains('.') || namespace.is_empty() { name.to_string() } else { format!("{namespace}.{name}") }
}

/// The full name of a definition and the namespace that its parts are in.
fn naming(object: &Map<String, Value>, namespace: &str) -> Result<(String, String), SchemaError> {
    let Some(name) = object.get("name").and_then(Value::as_str) else { return error("a named type has no name") };
    let namespace = object.get("namespace").and_then(Value::as_str).unwrap_or(namespace);
    let full = full_name(name, namespace);
    let inner = full.rsplit_once('.').map_or(String::new(), |(ns, _)| ns.to_string());
    Ok((full, inner))
}

fn attributes(node: &mut Node, object: &Map<String, Value>) {
    let text = |key: &str| object.get(key).and_then(Value::as_str).map(Box::from);
    let parameters = object.get("connect.parameters").and_then(Value::as_object);
    node.name = text("connect.name").or(node.name.take());
    node.logical = text("logicalType").or(node.logical.take());
    node.wanted = text("freshet.type").or(node.wanted.take());
    let number = |key: &str| object.get(key).and_then(Value::as_i64);
    node.scale = parameter(parameters, "scale").or(number("scale")).or(node.scale);
    // Without Connect's parameter, the converter's `precision` is a stand-in (64), not something that the database said.
    let stated = parameter(parameters, "connect.decimal.precision");
    let own = if parameters.is_some_and(|p| p.contains_key("scale")) { None } else { number("precision") };
    node.precision = stated.or(own).or(node.precision);
}

fn parameter(parameters: Option<&Map<String, Value>>, key: &str) -> Option<i64> {
    match parameters?.get(key)? {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.as_i64(),
        _ => None,
    }
}

fn connect_node(nodes: &mut Vec<Node>, json: &Value, depth: usize) -> Result<NodeId, SchemaError> {
    if depth > DEPTH_MAX {
        return error(format!("the schema part is nested deeper than {DEPTH_MAX}"));
    }
    let Some(object) = json.as_object() else { return error(format!("{json} is not a type of Connect")) };
    let name: Option<Box<str>> = object.get("name").and_then(Value::as_str).map(Box::from);
    let part = |nodes: &mut Vec<Node>, key: &str| match object.get(key) {
        Some(json) => connect_node(nodes, json, depth + 1),
        None => error(format!("a type of the schema part has no \"{key}\"")),
    };
    let shape = match object.get("type").and_then(Value::as_str) {
        Some("boolean") => Shape::Boolean,
        Some("int8" | "int16" | "int32") => Shape::Int,
        Some("int64") => Shape::Long,
        Some("float" | "float32") => Shape::Float,
        Some("double" | "float64") => Shape::Double,
        Some("string") => Shape::String,
        Some("bytes") => Shape::Bytes,
        Some("array") => Shape::Array(part(nodes, "items")?),
        Some("map") => Shape::Map(part(nodes, "values")?),
        Some("struct") => {
            let mut fields = Vec::new();
            for field in list(object, "fields")? {
                let Some(label) = field.get("field").and_then(Value::as_str) else {
                    return error("a field of the schema part has no name");
                };
                let node = connect_node(nodes, field, depth + 1)?;
                fields.push(Field { name: label.into(), node, default: None });
            }
            Shape::Record(Record { full_name: name.clone().unwrap_or_default(), fields })
        }
        Some(other) => return error(format!("the schema part has the unknown type {other}")),
        None => return error("a type of the schema part has no \"type\""),
    };
    let parameters = object.get("parameters").and_then(Value::as_object);
    let node = Node {
        name,
        scale: parameter(parameters, "scale"),
        precision: parameter(parameters, "connect.decimal.precision"),
        ..Node::new(shape)
    };
    let id = push(nodes, node);
    if object.get("optional").and_then(Value::as_bool) != Some(true) {
        return Ok(id);
    }
    let null = push(nodes, Node::new(Shape::Null));
    Ok(push(nodes, Node::new(Shape::Union(vec![null, id]))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_of_primitives_are_kept() {
        let schema = Schema::from_avro(
            r#"{"type":"record","name":"R","namespace":"a.b","fields":[
                {"name":"at","type":["null",{"type":"long","connect.name":"io.debezium.time.MicroTimestamp"}],"default":null},
                {"name":"n","type":{"type":"bytes","scale":2,"precision":64,"connect.parameters":{"scale":"2"},
                 "connect.name":"org.apache.kafka.connect.data.Decimal","logicalType":"decimal"}},
                {"name":"self","type":["null","R"]}]}"#,
        )
        .unwrap();
        let record = schema.record(schema.root).unwrap();
        assert_eq!(&*record.full_name, "a.b.R");
        let (nullable, at) = schema.optional(record.fields[0].node);
        assert!(nullable);
        assert_eq!(schema.node(at).name.as_deref(), Some("io.debezium.time.MicroTimestamp"));
        let n = schema.node(record.fields[1].node);
        assert_eq!((n.scale, n.precision), (Some(2), None));
        assert_eq!(schema.optional(record.fields[2].node), (true, schema.root));
    }

    #[test]
    fn what_is_no_schema_is_said() {
        let check = |text: &str, expect: &str| {
            let message = Schema::from_avro(text).unwrap_err().to_string();
            assert!(message.contains(expect), "{message}");
        };
        check("{", "not JSON");
        check("\"strin\"", "strin is used but not defined");
        check("[]", "no branches");
        check(r#"{"type":"record","name":"R"}"#, "no list of \"fields\"");
        check(r#"{"type":"fixed","name":"F"}"#, "no size");
        let deep = format!("{}\"int\"{}", r#"{"type":"array","items":"#.repeat(100), "}".repeat(100));
        check(&deep, "nested deeper");
    }

    #[test]
    fn connect_and_avro_come_to_the_same_tree() {
        let schema = Schema::from_connect(&serde_json::json!(
            {"type":"struct","name":"K","optional":false,"fields":[
                {"type":"int16","optional":true,"field":"a"},
                {"type":"bytes","optional":false,"name":"org.apache.kafka.connect.data.Decimal",
                 "parameters":{"scale":"4","connect.decimal.precision":"19"},"field":"b"}]}
        ))
        .unwrap();
        let record = schema.record(schema.root).unwrap();
        let (nullable, a) = schema.optional(record.fields[0].node);
        assert!(nullable && matches!(schema.node(a).shape, Shape::Int));
        let b = schema.node(record.fields[1].node);
        assert_eq!((b.scale, b.precision), (Some(4), Some(19)));
    }
}
