//! Tests of `certdist copy` between files, as an operator runs it.

use crate::support::{Site, stderr};

const SECRET: &str = "8d1f0cbf2f3a4e6d9b7c5a4e3d2c1b09";

fn site() -> Site {
    let configuration = "listen = \"127.0.0.1:0\"\ndatabase = \"sqlite:certdist.db\"\n\
                         [[enrollment]]\nname = \"lamp\"\nproduct_key = \"a1lamp\"\nkind = \"individual\"\n";
    let site = Site::configured(configuration);
    site.import(&format!(
        "deviceId,deviceName,deviceSecret,pskIdentity,psk\nSN-1,lamp-1,{SECRET},one,{}\n",
        "0f".repeat(16)
    ));
    site
}

#[test]
fn a_copy_has_what_the_database_has_and_says_how_much() {
    let site = site();
    let said = site.succeeds(&["copy", "--from", "sqlite:certdist.db", "--to", "sqlite:copy.db"]);
    assert!(said.contains("1 devices, 1 psks, 0 orders, 0 claims, 1 audit entries"), "{said}");
    let export = site.succeeds(&["export"]);
    let configuration = std::fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    site.write("certdist.toml", &configuration.replace("certdist.db", "copy.db"));
    assert_eq!(site.succeeds(&["export"]), export);
    assert!(site.succeeds(&["audit", "export"]).contains("\"copied\""));
    site.succeeds(&["audit", "verify"]);
    site.succeeds(&["database", "check"]);
}

#[test]
fn a_url_may_be_in_a_variable_and_is_not_repeated() {
    let site = site();
    let mut command = site.certdist(&["copy", "--from", "env:FROM", "--to", "env:TO", "--json"]);
    command.env("FROM", "sqlite:certdist.db").env("TO", "sqlite:copy.db");
    let output = command.output().expect("it runs");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["records"]["devices"], 1, "{json}");
    let failed = site.run(&["copy", "--from", "env:NOT_THERE", "--to", "sqlite:other.db"]);
    assert_eq!(failed.status.code(), Some(2));
    assert!(stderr(&failed).contains("the environment has no NOT_THERE"), "{}", stderr(&failed));
    let mut command = site.certdist(&["copy", "--from", "sqlite:certdist.db", "--to", "env:TO"]);
    let failed = command.env("TO", "postgres://anna:s3cret@127.0.0.1:1/certdist").output().expect("it runs");
    let said = stderr(&failed);
    assert!(said.contains("anna@127.0.0.1:1") && !said.contains("s3cret"), "{said}");
}

#[test]
fn sealed_secrets_need_the_configuration_with_their_key() {
    let site = site();
    let configuration = std::fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    site.write("database.key", &"ab".repeat(32));
    site.write("certdist.toml", &format!("database_key = \"file:database.key\"\n{configuration}"));
    site.succeeds(&["database", "seal"]);
    let copy = ["copy", "--from", "sqlite:certdist.db", "--to", "sqlite:copy.db"];
    site.succeeds(&copy);
    let file = std::fs::read(site.path("copy.db")).expect("the copy");
    assert!(!file.windows(SECRET.len()).any(|bytes| bytes == SECRET.as_bytes()));
    std::fs::remove_file(site.path("copy.db")).expect("it is there");
    site.write("certdist.toml", &configuration);
    let refused = site.run(&copy);
    assert!(stderr(&refused).contains("sealed under key"), "{}", stderr(&refused));
    assert!(!site.path("copy.db").exists());
}
