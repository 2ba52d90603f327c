//! ETSI's CoAP plugtest descriptions, run from outside over UDP. They are the tests of a server, as
//! far as certdist's endpoint supports the tested features. Each test is named after its
//! identifier; `docs/conformance.md` lists them all.

mod block;
mod client;
mod core;
mod link;
mod plain;

use std::collections::BTreeMap;

/// Returns the identifiers and objectives of the tests in a file. The identifier is the name of the
/// function, and the objective is the line before `#[test]`.
fn tests(source: &str) -> BTreeMap<String, String> {
    let lines: Vec<&str> = source.lines().collect();
    let test = |window: &[&str]| {
        let objective = window[0].strip_prefix("/// ")?;
        let name = window[2].strip_prefix("fn td_")?.split_once('(')?.0;
        (window[1] == "#[test]").then(|| (format!("TD_{}", name.to_uppercase()), objective.to_owned()))
    };
    lines.windows(3).filter_map(test).collect()
}

#[test]
fn the_table_lists_every_test_and_no_other() {
    let mut found = tests(include_str!("core.rs"));
    found.extend(tests(include_str!("block.rs")));
    found.extend(tests(include_str!("link.rs")));
    assert!(found.len() > 30);
    let document = include_str!("../../../docs/conformance.md");
    let row = |line: &str| {
        let mut cells = line.split('|').map(str::trim).filter(|cell| !cell.is_empty());
        let (identifier, objective) = (cells.next()?, cells.next()?);
        identifier.starts_with("TD_").then(|| (identifier.to_owned(), objective.to_owned()))
    };
    let listed: BTreeMap<String, String> = document.lines().filter_map(row).collect();
    assert_eq!(listed, found);
}
