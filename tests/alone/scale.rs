//! Carries out the commands of docs/scale.md that bring up three servers on one laptop.
#![cfg(feature = "simulation")]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    process::{Command, Stdio},
};

use crate::{
    alone,
    support::{CERTDIST, document::blocks_of, stderr, stdout},
};

/// Runs the script in its own network, as a user who is not root. The processes that it starts end with
/// it.
const LAPTOP: &str = "ip link set lo up && cd \"$1\" && \
                      exec setpriv --reuid postgres --regid postgres --init-groups \
                      env -i PATH=\"$1/bin:/usr/bin:/bin\" HOME=\"$1\" timeout 300 bash -euo pipefail commands";

#[test]
fn three_servers_come_up_on_a_laptop_as_it_is_written() {
    let _alone = alone();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/scale.md")).expect("docs/scale.md");
    let (_, section) = page.split_once("## Three servers on one laptop\n").expect("the section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let commands = blocks_of(section, "sh");
    assert_eq!(commands.len(), 6, "a database, a cloud, servers, a balancer, a device, and the end");

    let laptop = tempfile::tempdir().expect("a folder");
    let user =
        nix::unistd::User::from_name("postgres").expect("users").expect("PostgreSQL: run `make clients`");
    fs::create_dir(laptop.path().join("bin")).expect("a folder");
    fs::copy(CERTDIST, laptop.path().join("bin/certdist")).expect("copied");
    fs::write(laptop.path().join("commands"), commands.concat()).expect("written");
    fs::set_permissions(laptop.path(), fs::Permissions::from_mode(0o755)).expect("changed");
    chown(laptop.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("root may");
    let output = Command::new("unshare")
        .args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", LAPTOP, "laptop"])
        .arg(laptop.path())
        .stdin(Stdio::null())
        .output()
        .expect("unshare");
    let (said, errors) = (stdout(&output), stderr(&output));
    assert!(output.status.success(), "{said}\n{errors}");
    for expected in ["ready\nready\nready\n", "complete; 0 pruned", "\"devices\":1,\"throttled\":0"] {
        assert!(said.contains(expected), "{expected}: {said}\n{errors}");
    }
}
