//! Runs `benches/growth` on small tables. A test here fails if the cost of an operation grows
//! faster with the table than it may; how long the operation takes is not tested.

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    path::Path,
    process::{Command, Output},
};

use crate::{
    alone,
    support::{CERTDIST, stderr, stdout},
};

/// Runs the benchmark with this binary and these arguments.
fn growth(certdist: &Path, arguments: &[&str]) -> Output {
    // The ports are free again when the benchmark begins.
    let port = UdpSocket::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    let cloud = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(root.join("benches/growth"));
    command.arg("--check").args(arguments).env("CERTDIST", certdist);
    for (name, value) in [("PORT", port), ("CLOUD", cloud)] {
        command.env(name, value.to_string());
    }
    for (name, value) in
        [("ENROLLMENTS", "100 1000"), ("CROWD", "200"), ("PRODUCTS", "1 20"), ("ROUNDS", "200")]
    {
        command.env(name, value);
    }
    // The sweep takes sizes of its own, because it writes each device on its own.
    let most_swept = if arguments.contains(&"sweep") { "1000000" } else { "0" };
    command.env("MOST_SWEPT", most_swept).env("PATIENCE", "300").output().expect("bash")
}

#[test]
fn no_operation_costs_more_than_in_proportion_to_the_table() {
    let _alone = alone();
    for arguments in [&["1000", "30000"][..], &["--only", "sweep", "300", "3000"]] {
        let output = growth(Path::new(CERTDIST), arguments);
        println!("{}", stdout(&output));
        assert!(output.status.success(), "{}\n{}", stdout(&output), stderr(&output));
    }
}

#[test]
fn growth_faster_than_the_table_is_found() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let certdist = folder.path().join("certdist");
    // In place of certdist, a script whose import writes a number of bytes that depends on the
    // number of lines.
    for (bytes, is_accepted) in [("lines * 1000", true), ("lines * lines", false)] {
        let script = format!(
            "#!/bin/bash\n[ \"$1\" = import ] || exit 0\nlines=$(wc -l <\"$2\")\n\
             head -c $(({bytes})) /dev/zero >/dev/null\n"
        );
        fs::write(&certdist, script).expect("written");
        assert!(Command::new("chmod").arg("+x").arg(&certdist).status().expect("chmod").success());
        let output = growth(&certdist, &["--only", "import-new", "100", "3000"]);
        assert_eq!(output.status.success(), is_accepted, "{}\n{}", stdout(&output), stderr(&output));
        let names_it = stdout(&output).contains("import-new at 3000: what it writes");
        assert_eq!(names_it, !is_accepted, "{}", stdout(&output));
    }
}
