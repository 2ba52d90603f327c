//! Tests `certdist demo`: its output is the one that the README shows.
#![cfg(feature = "simulation")]

use crate::support::{
    Site,
    document::{agree, blocks_of},
    stderr, stdout,
};

#[test]
fn the_demo_shows_two_targets_as_the_readme_says() {
    let site = Site::new();
    let output = site.run(&["demo"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let said = stdout(&output);
    let readme = include_str!("../../README.md");
    let shown = blocks_of(readme, "").into_iter().find(|block| block.contains("simulated IoT Platform"));
    let shown: Vec<&str> = shown.expect("the output in the README").lines().collect();
    assert!(agree(&shown, &said.lines().collect::<Vec<_>>()).is_some(), "{said}");
}

#[test]
fn a_single_device_has_one_of_the_targets() {
    let site = Site::new();
    let said = stdout(&site.run(&["demo", "--devices", "1"]));
    for line in ["at shanghai              1, each", "at tokyo                 0, each", "a stranger"] {
        assert!(said.contains(line), "{line}: {said}");
    }
}
