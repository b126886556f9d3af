//! The registry of the simulation, which is away now and then.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::world::{Shared, lock};
use crate::decode::{Error, SchemaStore};

pub struct Schemas {
    world: Shared,
    texts: BTreeMap<u32, Arc<str>>,
}

impl Schemas {
    pub fn new(world: Shared) -> Schemas {
        let texts = lock(&world).shop.schemas();
        Schemas { world, texts }
    }
}

impl SchemaStore for Schemas {
    fn get(&self, id: u32) -> BoxFuture<'_, Result<Option<Arc<str>>, Error>> {
        let answer = match lock(&self.world).fails() {
            true => Err(Error::Away { url: "the registry".into(), reason: "it is away".into() }),
            false => Ok(self.texts.get(&id).cloned()),
        };
        std::future::ready(answer).boxed()
    }
}
