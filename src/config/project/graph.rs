//! The graph of models: in order, and parted into what the view and the tests need and what they do not.
//!
//! The invariant: a model comes after those that it refers to, and after those that its tests refer to; a cycle is refused by its names, and so
//! is a reference to a model that is not enabled. What is wrong in itself is told once, and not again where it is referred to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::jinja::Rendered;
use super::{Project, Reading};
use crate::config::section::near;
use crate::config::{DataTest, Model, quoted};

/// A reference from one model to another, by the text of the model or by one of its tests.
struct Edge {
    from: String,
    to: String,
    /// Its place among the tests that were found.
    test: Option<usize>,
}

/// A relation that something is wrong with, and what it reads is known from elsewhere, or does not matter.
fn without_reads(relation: String) -> (String, Vec<String>) {
    (relation, Vec::new())
}

impl Reading<'_> {
    pub fn finish(mut self, models: &BTreeMap<String, PathBuf>) -> Project {
        if !self.settings.read {
            let relations = self.nodes.values().flat_map(|node| &node.rendered.relations);
            let sources: Vec<String> = relations.filter(|r| !models.contains_key(*r)).cloned().collect();
            self.absent.extend(sources.into_iter().map(without_reads));
        }
        self.refuse_disabled(models);
        self.refuse_tests_of_sources(models);
        let order = self.order();
        let view = self.view(models);
        let mut needed: BTreeSet<&str> = BTreeSet::from([view.as_str()]);
        needed.extend(self.found.iter().flat_map(|(_, relations)| relations).map(String::as_str));
        let unrendered = self.absent.iter().map(|(name, reads)| (name.as_str(), reads));
        let rendered = self.nodes.iter().map(|(name, node)| (name.as_str(), &node.rendered.relations));
        let reads: BTreeMap<&str, &Vec<String>> = unrendered.chain(rendered).collect();
        let mut open: Vec<&str> = needed.iter().copied().collect();
        while let Some(name) = open.pop() {
            let reads = reads.get(name).into_iter().flat_map(|reads| reads.iter().map(String::as_str));
            open.extend(reads.filter(|read| needed.insert(read)));
        }
        let (kept, left): (Vec<String>, Vec<String>) =
            order.into_iter().partition(|name| needed.contains(name.as_str()));
        let mut model = |name: String| {
            let node = self.nodes.remove(&name).expect("each is in the order once");
            let Rendered { sql, lines, .. } = node.rendered;
            Model { name, path: node.path, sql, lines, materialized: node.materialized }
        };
        let (models, others) = (kept.into_iter().map(&mut model).collect(), left.into_iter().map(&mut model).collect());
        let mut tests: Vec<DataTest> = self.found.into_iter().map(|(test, _)| test).collect();
        tests.sort_by(|a, b| a.name.cmp(&b.name));
        Project { models, others, tests, view, absent: self.absent.into_keys().collect() }
    }

    fn refuse_disabled(&mut self, models: &BTreeMap<String, PathBuf>) {
        let is_disabled = |name: &String| !self.nodes.contains_key(name) && !self.absent.contains_key(name);
        let disabled: BTreeSet<String> = models.keys().filter(|name| is_disabled(name)).cloned().collect();
        // A test of a model that is not enabled is not either.
        self.found.retain(|(test, _)| !disabled.contains(&test.relation));
        let mut wrong = Vec::new();
        for (name, node) in &self.nodes {
            for relation in node.rendered.relations.iter().filter(|r| disabled.contains(*r)) {
                self.problem(self.reference(name, relation), format!("refers to {relation}, which is not enabled"));
                wrong.push(name.clone());
            }
        }
        self.absent.extend(wrong.into_iter().map(without_reads));
        for (test, relations) in &self.found {
            for relation in relations.iter().filter(|r| disabled.contains(*r)) {
                self.problem(&test.declared, format!("refers to {relation}, which is not enabled"));
            }
        }
        self.found.retain(|(_, relations)| !relations.iter().any(|r| disabled.contains(r)));
    }

    /// What holds back rows of a source stands before every model.
    fn refuse_tests_of_sources(&mut self, models: &BTreeMap<String, PathBuf>) {
        let mut found = std::mem::take(&mut self.found);
        found.retain(|(test, relations)| {
            let is_gate = test.predicate().is_some() && !models.contains_key(&test.relation);
            let model = relations.iter().find(|r| is_gate && models.contains_key(*r));
            if let Some(model) = model {
                let reason = format!(
                    "the rows of a source are tested before any model is made, so that the test cannot read {model}; test a model \
                     that selects them"
                );
                self.problem(&test.declared, reason);
            }
            model.is_none()
        });
        self.found = found;
    }

    /// The file and line where a model refers to another.
    fn reference(&self, from: &str, to: &str) -> String {
        let node = &self.nodes[from];
        let name = quoted(to);
        let line = node.rendered.sql.split('\n').position(|line| line.contains(&name));
        match line.and_then(|n| node.rendered.lines.get(n)) {
            Some(at) => at.to_string(),
            None => node.path.display().to_string(),
        }
    }

    /// The models that a model comes after. A cycle that was told has no edges any more.
    fn edges(&self, name: &str, told: &BTreeSet<String>) -> Vec<Edge> {
        let edge = |to: &String, test| Edge { from: name.into(), to: to.clone(), test };
        let mut edges: Vec<Edge> = self.nodes[name].rendered.relations.iter().map(|to| edge(to, None)).collect();
        for (n, (test, relations)) in self.found.iter().enumerate() {
            if test.relation == name && test.predicate().is_some() {
                edges.extend(relations.iter().filter(|to| *to != name).map(|to| edge(to, Some(n))));
            }
        }
        edges.retain(|e| self.nodes.contains_key(&e.to) && !(told.contains(name) && told.contains(&e.to)));
        edges
    }

    /// Each model after those that it refers to. Of a cycle, the first test is left out, or else its models are.
    fn order(&mut self) -> Vec<String> {
        let mut told = BTreeSet::new();
        loop {
            let cycle = match self.sorted(&told) {
                Ok(order) => return order,
                Err(cycle) => cycle,
            };
            let names: Vec<&str> = cycle.iter().map(|e| e.from.as_str()).collect();
            let (first, circle) = (names[0], names.join(" -> "));
            match cycle.iter().find_map(|e| Some((e, e.test?))) {
                Some((edge, test)) => {
                    let reason = format!(
                        "reads {}, which is made of {} itself ({circle} -> {first}): its rows go on only once they are tested",
                        edge.to, edge.from
                    );
                    self.problem(&self.found[test].0.declared, reason);
                    self.found.remove(test);
                }
                None => {
                    let reason = format!("the models refer to each other in a cycle: {circle} -> {first}");
                    self.problem(self.reference(first, &cycle[0].to), reason);
                    told.extend(names.iter().map(ToString::to_string));
                    self.absent.extend(told.iter().cloned().map(without_reads));
                }
            }
        }
    }

    fn sorted(&self, told: &BTreeSet<String>) -> Result<Vec<String>, Vec<Edge>> {
        let mut order: Vec<String> = Vec::new();
        let mut done: BTreeSet<String> = BTreeSet::new();
        for name in self.nodes.keys() {
            // For each model under way, what it still comes after; the edges lead from one to the next.
            let (mut path, mut edges) = (vec![(name.clone(), self.edges(name, told))], Vec::<Edge>::new());
            while let Some((name, after)) = path.last_mut() {
                if done.contains(name) || after.is_empty() {
                    if done.insert(name.clone()) {
                        order.push(name.clone());
                    }
                    path.pop();
                    edges.pop();
                    continue;
                }
                let edge = after.remove(0);
                let to = edge.to.clone();
                if let Some(start) = path.iter().position(|(name, _)| *name == to) {
                    edges.push(edge);
                    return Err(edges.split_off(start));
                }
                if !done.contains(&to) {
                    path.push((to.clone(), self.edges(&to, told)));
                    edges.push(edge);
                }
            }
        }
        Ok(order)
    }

    fn view(&self, models: &BTreeMap<String, PathBuf>) -> String {
        if let Some(view) = &self.settings.view {
            if !models.contains_key(view) {
                let hint = near(view, models.keys().map(String::as_str));
                self.problem("view", format!("there is no model {view} in models/{hint}"));
            } else if !self.nodes.contains_key(view) && !self.absent.contains_key(view) {
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
            // It is said in dataflow.toml, or cannot be known while one of them is not there.
            _ if !self.absent.is_empty() => String::new(),
            several => {
                self.problem("view", format!("is missing, and no model refers to any of {}", several.join(", ")));
                String::new()
            }
        }
    }
}
