use super::*;

const MINIMAL: &str = r#"
listen = "127.0.0.1:5684"
database = "sqlite:certdist.db"
[[enrollment]]
name = "lamp"
product_key = "a1"
kind = "derived"
key = "hex:000102030405060708090a0b0c0d0e0f"
"#;

fn parse(text: &str) -> Result<Config> {
    Config::parse(text, Path::new("/etc/certdist"))
}

fn error(text: &str) -> String {
    format!("{:#}", parse(text).expect_err("not valid"))
}

#[test]
fn a_minimal_configuration_has_sound_defaults() {
    let config = parse(MINIMAL).unwrap();
    assert_eq!(config.database, "sqlite:/etc/certdist/certdist.db");
    assert_eq!(config.enrollments[0].reissue, Reissue::Always);
    assert!(config.iot_platform.is_none());
    assert!(!config.limits.dtls.require_extended_master_secret);
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let error = error(&MINIMAL.replace("product_key", "produkt_key"));
    assert!(error.contains("line 6") && error.contains("produkt_key"), "{error}");
    assert!(error.contains("product_key"), "what would be right: {error}");
}

#[test]
fn a_missing_key_is_named() {
    let error = error(&MINIMAL.replace("database = \"sqlite:certdist.db\"", ""));
    assert!(error.contains("missing field `database`"), "{error}");
}

#[test]
fn wrong_values_say_what_would_be_right() {
    for (right, wrong, expected) in [
        ("sqlite:certdist.db", "certdist.db", "expected \"sqlite:PATH\""),
        ("derived", "derive", "unknown variant `derive`"),
        (
            "hex:000102030405060708090a0b0c0d0e0f",
            "000102030405060708090a0b0c0d0e0f",
            "expected \"env:NAME\", \"file:PATH\" or \"hex:DIGITS\"",
        ),
        ("hex:000102030405060708090a0b0c0d0e0f", "hex:0001", "2 bytes, expected 16 to 64"),
        (
            "hex:000102030405060708090a0b0c0d0e0f",
            "env:CERTDIST_NOT_THERE",
            "the environment has no CERTDIST_NOT_THERE",
        ),
        (
            "hex:000102030405060708090a0b0c0d0e0f",
            "file:not-there.key",
            "/etc/certdist/not-there.key cannot be read",
        ),
        ("\"derived\"", "\"shared\"", "takes identity and key"),
        ("127.0.0.1:5684", "localhost", "invalid socket address"),
    ] {
        let error = error(&MINIMAL.replace(right, wrong));
        assert!(error.contains(expected), "{wrong}: {error}");
        assert!(!error.contains("0102030405"), "a key is not repeated: {error}");
    }
}

#[test]
fn enrollments_are_told_apart() {
    let twice = format!("{MINIMAL}{}", &MINIMAL[MINIMAL.find("[[").unwrap()..]);
    assert!(error(&twice).contains("\"lamp\" is there twice"));
    let none = &MINIMAL[..MINIMAL.find("[[").unwrap()];
    assert!(error(none).contains("no [[enrollment]]"));
}

#[test]
fn reissue_policies_are_read_and_a_shared_key_has_a_window() {
    let shared = MINIMAL.replace("\"derived\"", "\"shared\"\nidentity = \"batch\"");
    let reissue = |text: &str| parse(text).map(|config| config.enrollments[0].reissue);
    assert_eq!(reissue(&shared).unwrap(), Reissue::Window(Duration::from_secs(86_400)));
    let with = |policy: &str| shared.replace("identity", &format!("reissue = \"{policy}\"\nidentity"));
    assert_eq!(reissue(&with("once")).unwrap(), Reissue::Once);
    assert_eq!(reissue(&with("always")).unwrap(), Reissue::Always);
    assert_eq!(reissue(&with("window:60")).unwrap(), Reissue::Window(Duration::from_secs(60)));
    assert!(error(&with("window:day")).contains("window:SECONDS"));
}

#[test]
fn limits_of_requests_have_sound_defaults_and_can_be_set_or_turned_off() {
    let rate = |burst, every| Rate::new(burst, Duration::from_secs_f64(every));
    let shared = MINIMAL.replace("\"derived\"", "\"shared\"\nidentity = \"batch\"");
    let requests = |text: &str| parse(text).map(|config| config.limits.requests);

    let defaults = requests(&shared).unwrap();
    assert!(defaults.per_identity.is_some());
    assert_eq!(defaults.per_address, None, "behind one address there may be a factory");
    assert_eq!(defaults.enrollments["lamp"].requests, None);
    assert!(defaults.enrollments["lamp"].refused_lookups.is_some());

    let set = requests(&format!(
        "{shared}requests = {{ burst = 3, every = 60 }}\nrefused_lookups = {{ burst = 4, every = 0.5 }}\n\
         [limits]\nrequests_per_identity = \"off\"\nrequests_per_address = {{ burst = 5, every = 1 }}\n"
    ))
    .unwrap();
    assert_eq!((set.per_identity, set.per_address), (None, rate(5, 1.0)));
    assert_eq!(set.enrollments["lamp"].requests, rate(3, 60.0));
    assert_eq!(set.enrollments["lamp"].refused_lookups, rate(4, 0.5));

    for (value, expected) in [
        ("\"of\"", "{ burst = REQUESTS, every = SECONDS } or \"off\""),
        ("7", "{ burst = REQUESTS, every = SECONDS } or \"off\""),
        ("{ burst = 3 }", "missing field `every`"),
        ("{ burst = 3, per = 1 }", "unknown field `per`"),
        ("{ burst = 0, every = 1 }", "expected a burst of 1 to 1000000"),
        ("{ burst = 1, every = -1 }", "0.00001 to 86400 seconds"),
        ("{ burst = 1, every = nan }", "0.00001 to 86400 seconds"),
    ] {
        let error = error(&format!("{MINIMAL}[limits]\nrequests_per_identity = {value}"));
        assert!(error.contains(expected) && error.contains("requests_per_identity"), "{error}");
    }
    let error = error(&format!("{MINIMAL}refused_lookups = \"off\""));
    assert!(error.contains("\"lamp\"") && error.contains("is for kind = \"shared\""), "{error}");
}

#[test]
fn limits_of_zero_are_refused() {
    assert!(error(&format!("{MINIMAL}[limits]\nmax_sessions = 0")).contains("max_sessions = 0"));
    let config =
        parse(&format!("{MINIMAL}[limits]\nmax_sessions = 7\nextended_master_secret = \"required\""))
            .unwrap();
    assert_eq!(config.limits.dtls.max_sessions, 7);
    assert!(config.limits.dtls.require_extended_master_secret);
}

#[test]
fn plain_coap_stays_on_the_machine_unless_the_operator_says_so() {
    let with = |section: &str| {
        MINIMAL.replace("[[enrollment]]", &format!("[plain_coap]\n{section}\n[[enrollment]]"))
    };
    let config = parse(&with("listen = \"127.0.0.1:5683\"\nenrollment = \"lamp\"")).unwrap();
    assert_eq!(config.plain_coap.map(|plain| plain.enrollment.name), Some("lamp".into()));
    let open = "listen = \"0.0.0.0:5683\"\nenrollment = \"lamp\"";
    assert!(error(&with(open)).contains("expected a loopback address, or exposed = true"));
    assert!(parse(&with(&format!("{open}\nexposed = true"))).is_ok());
    let other = "listen = \"127.0.0.1:5683\"\nenrollment = \"lamps\"";
    assert!(error(&with(other)).contains("no [[enrollment]] has that name"));
}

#[test]
fn a_path_mtu_is_one_that_hosts_and_links_have() {
    let with = |mtu: u32| format!("{MINIMAL}[limits]\npath_mtu = {mtu}\n");
    assert_eq!(parse(MINIMAL).unwrap().limits.dtls.path_mtu, 1280);
    for mtu in [576, 1500, 9000] {
        assert_eq!(parse(&with(mtu)).unwrap().limits.dtls.path_mtu, mtu as usize);
    }
    for mtu in [0, 575, 9001] {
        assert!(error(&with(mtu)).contains("expected 576 to 9000 bytes"));
    }
}

#[test]
fn database_keys_are_found_in_files_and_what_is_wrong_is_said_without_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let key = "ab".repeat(32);
    std::fs::write(folder.path().join("database.key"), format!("{key}\n")).unwrap();
    std::fs::write(folder.path().join("short.key"), &key[..60]).unwrap();
    let with = |lines: &str| Config::parse(&format!("{lines}\n{MINIMAL}"), folder.path());
    assert_eq!(with("").unwrap().database_keys.first(), None);
    let config = with("database_key = \"file:database.key\"").unwrap();
    assert!(config.database_keys.first().is_some());
    assert!(!format!("{config:?}").contains(&key[..8]));
    for (lines, expected) in [
        ("database_key = \"file:short.key\"".to_owned(), "64 hex digits or in base64"),
        ("database_key = \"file:not-there.key\"".into(), "not-there.key cannot be read"),
        ("database_key = \"env:CERTDIST_NOT_THERE\"".into(), "the environment has no CERTDIST_NOT_THERE"),
        ("database_key = \"credential:db\"".into(), "LoadCredential=db:PATH"),
        ("database_key = \"credential:../db\"".into(), "the name of a credential"),
        (format!("database_key = \"{key}\""), "expected \"file:PATH\", \"env:NAME\" or \"credential:NAME\""),
        ("database_key_previous = [\"file:database.key\"]".into(), "without database_key"),
    ] {
        let error = format!("{:#}", with(&lines).expect_err(&lines));
        assert!(error.contains(expected) && !error.contains(&key[..8]), "{lines}: {error}");
    }
}

#[test]
fn how_much_of_the_audit_log_is_kept_can_be_set() {
    let keep = |section: &str| parse(&format!("{MINIMAL}[audit]\n{section}")).unwrap().audit;
    assert_eq!(parse(MINIMAL).unwrap().audit, Keep::default());
    assert_eq!(keep("keep_days = 30\nmax_rows = 0"), Keep { days: Some(30), rows: None });
}
