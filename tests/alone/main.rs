//! Tests that need the machine to themselves and so run one at a time: loads, killed servers,
//! searches of a process's memory, network namespaces, a browser.

mod abuse;
mod addresses;
mod beside;
mod browser;
mod crash;
#[cfg(feature = "simulation")]
mod growth;
mod incidents;
mod memory;
mod newcomer;
mod nights;
mod package;
mod scale;
#[path = "../support/mod.rs"]
mod support;

use std::{
    fs,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Waits until no other test of this binary is running. No other test starts while the guard is
/// held.
fn alone() -> MutexGuard<'static, ()> {
    static RUNNING: Mutex<()> = Mutex::new(());
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn each_test_of_this_binary_waits_for_its_turn() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/alone");
    let mut tests = 0;
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.ends_with("main.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("UTF-8");
        assert!(!text.contains("#[tokio::test"), "{}: a lock is not held across an await", path.display());
        for test in text.split("#[test]\n").skip(1) {
            let mut lines = test.lines().skip_while(|line| !line.starts_with("fn "));
            let name = lines.next().unwrap_or_default();
            assert_eq!(lines.next(), Some("    let _alone = alone();"), "{}: {name}", path.display());
            tests += 1;
        }
    }
    assert!(tests > 15, "{tests}");
}
