//! The graph of models: in order, and cut to what the view and the tests need.
//!
//! The invariant: a model comes after those that it refers to; a cycle is refused by its names, and so is a reference to a model that is not
//! enabled.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::jinja::Rendered;
use super::{Project, Reading};
use crate::config::section::near;
use crate::config::{DataTest, Model};

impl Reading<'_> {
    /// Puts the graph in order and leaves out what neither the view nor a test needs.
    pub fn finish(mut self, models: &BTreeMap<String, PathBuf>) -> Project {
        // A test of a model that is not enabled is not either.
        let disabled: BTreeSet<&String> = models.keys().filter(|m| !self.nodes.contains_key(*m)).collect();
        self.found.retain(|(test, _)| !disabled.contains(&test.relation));
        let failed = |path: &Path| {
            let file = path.display().to_string();
            self.cx.problems.borrow().iter().any(|p| p.key.starts_with(&file))
        };
        for node in self.nodes.values() {
            let gone = node.rendered.relations.iter().filter(|r| disabled.contains(r) && !failed(&models[*r]));
            for relation in gone {
                self.problem(node.path.display().to_string(), format!("refers to {relation}, which is not enabled"));
            }
        }
        for (test, relations) in &self.found {
            for relation in relations.iter().filter(|r| disabled.contains(r) && !failed(&models[*r])) {
                self.problem(&test.declared, format!("refers to {relation}, which is not enabled"));
            }
        }
        let order = self.order();
        let view = self.view(models);
        let mut needed: BTreeSet<&str> = BTreeSet::from([view.as_str()]);
        needed.extend(self.found.iter().flat_map(|(_, relations)| relations).map(String::as_str));
        for name in order.iter().rev() {
            if needed.contains(name.as_str()) {
                needed.extend(self.nodes[name].rendered.relations.iter().map(String::as_str));
            }
        }
        let kept: Vec<String> = order.into_iter().filter(|name| needed.contains(name.as_str())).collect();
        let model = |name: String| {
            let node = self.nodes.remove(&name).expect("each is in the order once");
            let Rendered { sql, lines, .. } = node.rendered;
            Model { name, path: node.path, sql, lines, materialized: node.materialized }
        };
        let models = kept.into_iter().map(model).collect();
        let mut tests: Vec<DataTest> = self.found.into_iter().map(|(test, _)| test).collect();
        tests.sort_by(|a, b| a.name.cmp(&b.name));
        Project { models, tests, view }
    }

    /// Each model after those that it refers to.
    fn order(&self) -> Vec<String> {
        fn visit(reading: &Reading<'_>, name: &str, path: &mut Vec<String>, order: &mut Vec<String>) {
            if order.iter().any(|n| n == name) {
                return;
            }
            if let Some(start) = path.iter().position(|n| n == name) {
                let circle = path[start..].join(" -> ");
                let file = reading.nodes[name].path.display().to_string();
                reading.problem(file, format!("the models refer to each other in a cycle: {circle} -> {name}"));
                return;
            }
            let Some(node) = reading.nodes.get(name) else { return };
            path.push(name.into());
            for relation in &node.rendered.relations {
                visit(reading, relation, path, order);
            }
            path.pop();
            order.push(name.into());
        }
        let mut order = Vec::new();
        for name in self.nodes.keys() {
            visit(self, name, &mut Vec::new(), &mut order);
        }
        order
    }

    fn view(&self, models: &BTreeMap<String, PathBuf>) -> String {
        if let Some(view) = &self.settings.view {
            if !models.contains_key(view) {
                let hint = near(view, models.keys().map(String::as_str));
                self.problem("view", format!("there is no model {view} in models/{hint}"));
            } else if !self.nodes.contains_key(view) && self.cx.problems.borrow().is_empty() {
                self.problem("view", format!("the model {view} is not enabled"));
            }
            return view.clone();
        }
        let referred: BTreeSet<&String> = self.nodes.values().flat_map(|n| &n.rendered.relations).collect();
        let last: Vec<&str> = self.nodes.keys().filter(|n| !referred.contains(n)).map(String::as_str).collect();
        match last.as_slice() {
            [view] => view.to_string(),
            // In a cycle, or with nothing that could be rendered: told already.
            [] => String::new(),
            // Nor can it be known while one of them could not be rendered.
            _ if self.nodes.len() < models.len() && !self.cx.problems.borrow().is_empty() => String::new(),
            several => {
                self.problem("view", format!("is missing, and no model refers to any of {}", several.join(", ")));
                String::new()
            }
        }
    }
}
