//! Which table is searched, and whether another one is made to take its place.

use super::Status;

/// Whether a table is made that is to take the index's place.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Building {
    Not,
    /// Somebody asks for it.
    Asked,
    /// Rows of the view that it lacks.
    Lacking(Option<usize>),
    /// It was given up; the index is the one before.
    Failed(String),
}

impl Status {
    /// The table that is searched now. Whoever asked for another one has it.
    pub fn set_table(&self, name: &str) {
        let mut now = self.now();
        now.table = Some(name.into());
        now.building = Building::Not;
    }

    pub fn table(&self) -> Option<String> {
        self.now().table.clone()
    }

    /// Asks for the index to be built anew. When it is being built already, that is what was asked for.
    pub fn ask_to_rebuild(&self) {
        let mut now = self.now();
        if matches!(now.building, Building::Not | Building::Failed(_)) {
            now.building = Building::Asked;
        }
    }

    /// Whether somebody asks for the index to be built anew.
    pub fn is_asked_to_rebuild(&self) -> bool {
        self.now().building == Building::Asked
    }

    /// A table is being made: how many rows of the view it lacks, where that is known already.
    pub fn set_building(&self, lacking: Option<usize>) {
        self.now().building = Building::Lacking(lacking);
    }

    /// A table that was being made was given up.
    pub fn set_building_failed(&self, why: String) {
        self.now().building = Building::Failed(why);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::serve::Metrics;

    #[test]
    fn whoever_asks_for_a_rebuild_while_there_is_one_has_it() {
        let status = Status::new(Arc::new(Metrics::new()));
        let building = || status.to_json()["index"]["building"].clone();
        status.set_table("t");
        assert_eq!((building(), status.is_asked_to_rebuild()), (Value::Null, false));
        status.ask_to_rebuild();
        assert_eq!((building(), status.is_asked_to_rebuild()), (json!({"lacking": null}), true));
        status.set_building(Some(3));
        status.ask_to_rebuild();
        assert_eq!((building(), status.is_asked_to_rebuild()), (json!({"lacking": 3}), false));
        status.set_building_failed("the disk is full".into());
        assert_eq!((building(), status.is_asked_to_rebuild()), (json!({"failed": "the disk is full"}), false));
        status.ask_to_rebuild();
        assert!(status.is_asked_to_rebuild(), "it may be asked for again");
        status.set_table("t.1");
        assert_eq!((building(), status.is_asked_to_rebuild()), (Value::Null, false));
        assert_eq!(status.to_json()["index"]["table"], "t.1");
    }
}
