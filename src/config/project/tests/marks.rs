//! Marks against templates that say of each of their lines which it is.

use std::path::Path;

use minijinja::Environment;
use proptest::prelude::*;

use crate::config::Line;
use crate::config::project::template::{Marks, Template};

#[derive(Clone, Debug)]
enum Part {
    /// The number of its line.
    Text,
    /// The same, printed by an expression.
    Print(Trim),
    Space,
    Break,
    Comment(Trim),
    For(Trim, Trim, Vec<Part>),
    If(bool, Trim, Trim, Vec<Part>),
}

/// Whether a tag strips the white space before and after it.
type Trim = (bool, bool);

fn parts() -> impl Strategy<Value = Vec<Part>> {
    let trim = || any::<Trim>();
    let leaf = prop_oneof![
        4 => Just(Part::Text),
        2 => trim().prop_map(Part::Print),
        3 => Just(Part::Space),
        4 => Just(Part::Break),
        1 => trim().prop_map(Part::Comment),
    ];
    let list = |part: BoxedStrategy<Part>| proptest::collection::vec(part, 0..8);
    let part = leaf.prop_recursive(3, 40, 8, move |inner| {
        let inner = list(inner.boxed());
        prop_oneof![
            (trim(), trim(), inner.clone()).prop_map(|(a, b, parts)| Part::For(a, b, parts)),
            (any::<bool>(), trim(), trim(), inner).prop_map(|(yes, a, b, parts)| Part::If(yes, a, b, parts)),
        ]
    });
    list(part.boxed())
}

fn write(parts: &[Part], out: &mut String) {
    let tag = |open: &str, inside: &str, close: &str, trim: Trim| {
        let dash = |yes: bool| if yes { "-" } else { "" };
        format!("{open}{} {inside} {}{close}", dash(trim.0), dash(trim.1))
    };
    for part in parts {
        let line = out.matches('\n').count() + 1;
        match part {
            Part::Text => *out += &format!("L{line}."),
            Part::Print(trim) => *out += &tag("{{", &format!("'L{line}.'"), "}}", *trim),
            Part::Space => out.push(' '),
            Part::Break => out.push('\n'),
            Part::Comment(trim) => *out += &tag("{#", "of two\nlines", "#}", *trim),
            Part::For(open, close, inside) => {
                *out += &tag("{%", "for i in [1, 2]", "%}", *open);
                write(inside, out);
                *out += &tag("{%", "endfor", "%}", *close);
            }
            Part::If(yes, open, close, inside) => {
                *out += &tag("{%", &format!("if {yes}"), "%}", *open);
                write(inside, out);
                *out += &tag("{%", "endif", "%}", *close);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn marks_change_nothing_and_tell_each_line(parts in parts(), captured in any::<bool>()) {
        let mut text = String::new();
        write(&parts, &mut text);
        if captured {
            text = format!("{{% set x %}}{text}{{% endset %}}{{{{ x }}}}");
        }
        let mut environment = Environment::new();
        environment.set_keep_trailing_newline(true);
        environment.add_function("__list", |items: Vec<minijinja::Value>| items);
        let plain = environment.render_str(&text, ()).unwrap();
        let template = Template::new(Path::new("m.sql").into(), text.clone()).unwrap();
        let mut marks = Marks::default();
        let marked = environment.render_str(&template.marked(&mut marks), ()).unwrap();
        let default = Line { path: template.path.clone(), number: 1 };
        let (sql, lines) = marks.take_out(&marked, &default);
        prop_assert_eq!(&sql, &plain);
        prop_assert_eq!(lines.len(), sql.split('\n').count());
        for (rendered, line) in sql.split('\n').zip(&lines).filter(|_| !captured) {
            if let Some(said) = rendered.split(['L', '.']).nth(1) {
                prop_assert_eq!(said.parse::<u32>().unwrap(), line.number, "{:?} of {:?}", rendered, text);
            }
        }
    }
}
