//! Carries out the steps that docs/operations.md gives for each incident, and the migration that
//! docs/migrate.md describes.
#![cfg(feature = "simulation")]

use std::{fs, path::Path, process::Command};

use crate::{
    alone,
    support::{
        CERTDIST, Site,
        document::{blocks_of, typed},
        stderr, stdout,
    },
};

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn each_incident_of_the_operators_guide_is_survived_and_shows_where_it_says() {
    let _alone = alone();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/incidents.sh");
    let output = Command::new(script).arg(CERTDIST).output().expect("bash");
    assert!(output.status.success(), "{}\n{}", stdout(&output), stderr(&output));
    assert!(stdout(&output).ends_with("== all is well\n"), "{}", stdout(&output));
    // The page must have a section for each incident that the script tests.
    let page = file("docs/operations.md").to_lowercase();
    for incident in stdout(&output).lines().filter_map(|line| line.strip_prefix("== ")) {
        assert!(page.contains(&format!("### {incident}\n")) || incident == "all is well", "{incident}");
    }
}

#[test]
fn the_migration_is_what_its_page_says() {
    let _alone = alone();
    let page = file("docs/migrate.md");
    let site = Site::new();
    // This test uses the configuration, table and commands of the page, in the order of the page.
    site.write("certdist.toml", blocks_of(&page, "toml")[0]);
    site.write("lamp-2026.key", &"00".repeat(32));
    let [table, expected] = blocks_of(&page, "csv")[..] else { panic!("two tables") };
    site.write("device_table.csv", table);
    for line in blocks_of(&page, "console").into_iter().flat_map(typed) {
        let mut shell = Command::new("sh");
        shell.args(["-c", line.command]).current_dir(site.path("")).env_remove("RUST_LOG");
        let folder = Path::new(CERTDIST).parent().expect("a folder").display();
        let path = std::env::var("PATH").expect("a path");
        let output = shell.env("PATH", format!("{folder}:{path}")).output().expect("sh");
        assert!(output.status.success(), "{}: {}", line.command, stderr(&output));
        assert_eq!(stdout(&output).lines().collect::<Vec<_>>(), line.shown, "{}", line.command);
    }
    assert_eq!(fs::read_to_string(site.path("back.csv")).expect("exported"), expected);
}
