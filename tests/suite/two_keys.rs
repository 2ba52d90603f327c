//! The way of a key that is replaced: a second key is added, devices move over, the former key is
//! taken away. Shows what the operator sees at each step.

use crate::support::{
    MASTER, Process, SHARED_IDENTITY, SHARED_KEY, Site,
    console::{Visitor, admin, free_address},
    http_get, stderr, stdout, wait_for,
};

const NEXT_MASTER: &str = "ff0102030405060708090a0b0c0d0e0f";
const NEXT_SHARED: &str = "another-key-here";

/// Adds lines after the line `key` of an enrollment, or replaces this line.
fn with_keys(configuration: &str, key: &str, lines: &str) -> String {
    let line = format!("key = \"hex:{key}\"\n");
    assert!(configuration.contains(&line), "{configuration}");
    configuration.replace(&line, lines)
}

/// Returns whether a device gets its certificate.
fn is_served(site: &Site, server: &Process, identity: &str, key: &str, more: &[&str]) -> bool {
    let address = server.address.to_string();
    let device = ["device-sim", "--server", &address, "--identity", identity, "--psk", key];
    site.run(&[&device[..], &["--patience", "3"], more].concat()).status.success()
}

#[test]
fn a_leaked_key_is_rolled_without_losing_a_device() {
    let console = free_address();
    let site = Site::with(&admin(console, ""));
    let before = std::fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    site.import(
        "deviceId,enrollment,deviceName,deviceSecret\nSN00000001,lamp,lamp-1,secretoflamp10000000000000000000\n\
         SN00000002,lamp,lamp-2,secretoflamp20000000000000000000\n\
         PLUG-1,plug,plug-1,secretofplug10000000000000000000\n",
    );
    let server = site.serve();
    let run = |arguments: &[&str]| {
        let output = site.run(arguments);
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    let derived = |id: &str, more: &[&str]| {
        let key = run(&[&["key", "new", "--derive", id, "--enrollment", "lamp"][..], more].concat());
        key.trim().to_owned()
    };
    let lamp = |id: &str, key: &str| is_served(&site, &server, id, key, &[]);
    let plug = |identity: &str, key: &str| {
        is_served(&site, &server, identity, &hex::encode(key), &["--sn", "PLUG-1"])
    };
    let show = |name: &str| run(&["enrollment", "show", name]);
    let keys_of = |name: &str| -> serde_json::Value {
        let json = run(&["enrollment", "show", name, "--json"]);
        serde_json::from_str::<serde_json::Value>(&json).expect("JSON")["keys"].clone()
    };
    let metrics = || http_get(console, "/metrics");
    let former = derived("SN00000001", &[]);
    assert!(lamp("SN00000001", &former) && plug(SHARED_IDENTITY, SHARED_KEY));

    // Before: nothing tells of a second key.
    assert!(!show("lamp").contains("since"), "{}", show("lamp"));
    assert!(keys_of("lamp").is_null() && !metrics().contains("certdist_key_"));
    assert!(!run(&["check-config"]).contains("key_next"));
    let none = site.run(&["key", "new", "--derive", "SN1", "--enrollment", "lamp", "--next"]);
    assert!(stderr(&none).contains("has no key_next"), "{}", stderr(&none));

    // Both keys. The new one of the plugs has its own identity.
    let shared = hex::encode(SHARED_KEY);
    let next_shared = hex::encode(NEXT_SHARED);
    let both =
        with_keys(&before, MASTER, &format!("key = \"hex:{MASTER}\"\nkey_next = \"hex:{NEXT_MASTER}\"\n"));
    let both = with_keys(
        &both,
        &shared,
        &format!("key = \"hex:{shared}\"\nkey_next = \"hex:{next_shared}\"\nidentity_next = \"plug-next\"\n"),
    );
    site.write("certdist.toml", &both);
    let checked = run(&["check-config"]);
    assert!(checked.contains("accept both key and key_next: 2 (lamp, plug);"), "{checked}");
    assert!(show("lamp").contains("not known: no server has reported it"), "{}", show("lamp"));
    server.signal("HUP");
    let shown = wait_for(|| show("lamp"), |shown| !shown.contains("not known"));
    assert_eq!(shown.matches("not used since 20").count(), 2, "{shown}");

    let new = derived("SN00000002", &["--next"]);
    assert_ne!(new, derived("SN00000002", &[]));
    assert!(lamp("SN00000001", &former) && lamp("SN00000002", &new));
    assert!(!lamp("SN00000002", &former), "the key of another device");
    assert!(plug(SHARED_IDENTITY, SHARED_KEY) && plug("plug-next", NEXT_SHARED));
    assert!(!plug("plug-next", SHARED_KEY) && !plug(SHARED_IDENTITY, NEXT_SHARED));

    // What is counted is written at once after a reload, and otherwise once a minute.
    server.signal("HUP");
    wait_for(|| keys_of("plug").to_string(), |_| keys_of("plug")["next"]["handshakes"] == 1);
    for name in ["lamp", "plug"] {
        let keys = keys_of(name);
        for key in ["current", "next"] {
            assert_eq!(keys[key]["handshakes"], 1, "{keys}");
            assert!(keys[key]["lastUsed"].as_str() >= keys[key]["since"].as_str(), "{keys}");
        }
    }
    assert_eq!(keys_of("plug")["next"]["identity"], "plug-next");
    assert!(show("plug").contains("identity_next    plug-next\n"), "{}", show("plug"));
    assert!(show("lamp").contains("; 1 handshakes since 20"), "{}", show("lamp"));
    for key in ["current", "next"] {
        let line = format!("\ncertdist_key_handshakes_total{{enrollment=\"lamp\",key=\"{key}\"}} 1\n");
        assert!(metrics().contains(&line), "{}", metrics());
        assert!(metrics().contains(&format!(
            "\ncertdist_key_last_used_timestamp_seconds{{enrollment=\"plug\",key=\"{key}\"}} "
        )));
    }
    let page = Visitor::new(console, "guest").get("/enrollments").body;
    assert_eq!(page.matches("The former key (key)").count(), 2, "{page}");
    assert!(page.contains("One handshake since"), "{page}");
    for secret in [MASTER, NEXT_MASTER, &next_shared, NEXT_SHARED] {
        assert!(!page.contains(secret) && !metrics().contains(secret) && !show("plug").contains(secret));
    }

    // The former keys are taken away.
    let after = with_keys(&before, MASTER, &format!("key = \"hex:{NEXT_MASTER}\"\n"));
    let after = with_keys(&after, &shared, &format!("key = \"hex:{next_shared}\"\n"));
    site.write("certdist.toml", &after.replace(SHARED_IDENTITY, "plug-next"));
    server.signal("HUP");
    wait_for(metrics, |metrics| !metrics.contains("certdist_key_"));
    assert!(lamp("SN00000002", &new) && plug("plug-next", NEXT_SHARED));
    assert!(!lamp("SN00000001", &former) && !plug(SHARED_IDENTITY, SHARED_KEY));
    assert!(lamp("SN00000001", &derived("SN00000001", &[])), "it has moved over");
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn the_uses_of_keys_outlive_a_stop_and_are_those_of_all_servers() {
    let site = Site::new();
    let before = std::fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    let both = format!("key = \"hex:{MASTER}\"\nkey_next = \"hex:{NEXT_MASTER}\"\n");
    site.write("certdist.toml", &with_keys(&before, MASTER, &both));
    site.import("deviceId,enrollment,deviceName,deviceSecret\nSN00000001,lamp,lamp-1,secretoflamp10000000000000000000\n");
    let key = stdout(&site.run(&["key", "new", "--derive", "SN00000001", "--enrollment", "lamp"]));
    let servers = [site.serve(), site.serve()];
    for server in &servers {
        assert!(is_served(&site, server, "SN00000001", key.trim(), &[]));
    }
    for server in servers {
        assert_eq!(server.stop(), Some(0));
    }
    let show = stdout(&site.run(&["enrollment", "show", "lamp"]));
    assert!(show.contains("; 2 handshakes since 20"), "{show}");
    assert_eq!(show.matches("not used since 20").count(), 1, "{show}");
}
