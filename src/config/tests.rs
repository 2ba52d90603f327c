mod host;

use nix::time::ClockId;

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
    assert_eq!(&*config.database, "sqlite:/etc/certdist/certdist.db");
    assert_eq!(config.enrollments[0].reissue, Reissue::Always);
    assert!(config.targets.is_empty());
    assert!(!config.limits.dtls.require_extended_master_secret);
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let error = error(&MINIMAL.replace("product_key", "produkt_key"));
    assert!(error.contains("line 6") && error.contains("produkt_key"), "{error}");
    assert!(error.contains("product_key"), "expected: {error}");
}

#[test]
fn a_missing_key_is_named() {
    let error = error(&MINIMAL.replace("database = \"sqlite:certdist.db\"", ""));
    assert!(
        error.contains("database is missing; expected a line such as database = \"sqlite:certdist.db\""),
        "{error}"
    );
}

#[test]
fn errors_of_values_say_what_is_expected() {
    for (right, wrong, expected) in [
        ("sqlite:certdist.db", "certdist.db", "expected \"sqlite:PATH\""),
        ("sqlite:certdist.db", "sqlite://certdist.db", "such as \"sqlite:certdist.db\""),
        ("sqlite:certdist.db", "sqlite:///var/lib/c.db", "such as \"sqlite:/var/lib/c.db\""),
        ("sqlite:certdist.db", "sqlite:////var/lib/c.db", "such as \"sqlite:/var/lib/c.db\""),
        ("sqlite:certdist.db", "sqlite::memory:", "the path of a file"),
        ("sqlite:certdist.db", "sqlite:c.db?mode=ro", "no parameters"),
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
fn enrollments_must_differ() {
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
    for wrong in ["window:day", "window:0", "window:315360001", "window:18446744073709551616"] {
        let error = error(&with(wrong));
        assert!(error.contains(wrong) && error.contains("window:SECONDS\" with 1 to 315360000 s"), "{error}");
    }
    assert!(parse(&with("window:1")).is_ok() && parse(&with("window:315360000")).is_ok());
}

#[test]
fn rate_limits_have_sound_defaults_and_can_be_set_or_turned_off() {
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
        ("{ burst = 1000001, every = 1 }", "expected a burst of 1 to 1000000"),
        ("{ burst = -1, every = 1 }", "expected a burst of 1 to 1000000"),
        ("{ burst = 9223372036854775807, every = 1 }", "expected a burst of 1 to 1000000"),
        ("{ burst = 1, every = 0.000009 }", "0.00001 to 86400 seconds"),
        ("{ burst = 1, every = 86401 }", "0.00001 to 86400 seconds"),
        ("{ burst = 1, every = 1e300 }", "0.00001 to 86400 seconds"),
        ("{ burst = 1, every = -1 }", "0.00001 to 86400 seconds"),
        ("{ burst = 1, every = nan }", "0.00001 to 86400 seconds"),
    ] {
        let error = error(&format!("{MINIMAL}[limits]\nrequests_per_identity = {value}"));
        assert!(error.contains(expected) && error.contains("requests_per_identity"), "{error}");
    }
    for (burst, every) in [(1, 0.00001), (1_000_000, 86_400.0)] {
        let rates = format!("{MINIMAL}requests = {{ burst = {burst}, every = {every} }}");
        assert_eq!(requests(&rates).unwrap().enrollments["lamp"].requests, rate(burst, every));
    }
    let error = error(&format!("{MINIMAL}refused_lookups = \"off\""));
    assert!(error.contains("\"lamp\"") && error.contains("is only for kind = \"shared\""), "{error}");
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
fn limits_of_sessions_reach_the_dtls_endpoints() {
    let limits = |keys: &str| parse(&format!("{MINIMAL}[limits]\n{keys}\n")).unwrap().limits.dtls;
    let set = limits("retransmission_timeout = 2.5\nsessions_per_device = 7\nsession_max_age = 3600");
    assert_eq!(set.retransmission_timeout, Duration::from_millis(2500));
    assert_eq!((set.sessions_per_holder, set.session_max_age), (7, Duration::from_secs(3600)));
    let defaults = limits("");
    assert_eq!(defaults.retransmission_timeout, Duration::from_secs(1));
    assert_eq!((defaults.sessions_per_holder, defaults.session_max_age), (4, Duration::from_secs(86_400)));
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

/// The example configuration that operators get.
const EXAMPLE: &str = include_str!("../../certdist.example.toml");

/// Returns the example, with its commented-out configuration keys uncommented.
pub(super) fn whole_example() -> String {
    let shown = |line: &&str| {
        line.strip_prefix('#')
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '['))
    };
    EXAMPLE.lines().map(|line| if shown(&line) { &line[1..] } else { line }).collect::<Vec<_>>().join("\n")
}

/// Parses the example, after creating the key files that it names.
fn parse_example(text: &str) -> Result<Config> {
    let folder = tempfile::tempdir().unwrap();
    for key in ["lamp-2026", "plug-batch-7"] {
        let write = |name, key| fs::write(folder.path().join(name), key).unwrap();
        write(format!("{key}.key"), "000102030405060708090a0b0c0d0e0f\n");
        write(format!("{key}-next.key"), "ff0102030405060708090a0b0c0d0e0f\n");
    }
    fs::write(folder.path().join("database.key"), "ab".repeat(32)).unwrap();
    let admin = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(folder.path().join("admin.pem"), admin.cert.pem()).unwrap();
    fs::write(folder.path().join("admin-key.pem"), admin.key_pair.serialize_pem()).unwrap();
    // Tests have no credentials in the environment.
    let text = text.replace("#credentials = \"env\"", "credentials = \"ecs-role\"");
    let text = text
        .replace("credentials = \"env\"", "credentials = \"ecs-role\"")
        .replace("ca_file = \"proxy-ca.pem\"", "");
    Config::parse(&text, folder.path())
}

#[test]
fn the_example_is_valid_and_shows_the_defaults() {
    let as_it_is = parse_example(EXAMPLE).unwrap();
    let mut whole = parse_example(&whole_example()).unwrap();
    // For second keys, guards, `[admin]`, `[plain_coap]`, `server_name` and `workers`, the values in the file are
    // not the defaults but examples, as the file's comments say.
    for enrollment in &mut whole.enrollments {
        assert!(enrollment.next.take().is_some());
        let guards = &mut enrollment.guards;
        (guards.opens, guards.closes, guards.max_devices) = (None, None, None);
    }
    assert_eq!(as_it_is.enrollments, whole.enrollments);
    assert_eq!(as_it_is.limits.requests, whole.limits.requests);
    assert!(whole.admin.take().is_some() && whole.plain_coap.take().is_some());
    assert_eq!(whole.server_name.take().as_deref(), Some("shanghai-1"));
    assert_eq!(whole.targets.pop().map(|target| target.name).as_deref(), Some("tokyo"));
    assert_eq!(as_it_is.target_of, whole.target_of);
    whole.limits.workers = as_it_is.limits.workers;
    // Each configuration was parsed in its own folder, so the paths of the databases differ.
    whole.database = as_it_is.database.clone();
    assert_eq!(as_it_is.needs_restart(&whole), [] as [&str; 0]);
}

#[test]
fn a_password_in_the_url_of_the_database_is_not_shown() {
    let url = "postgres://anna:s3cret@db/certdist";
    let config = parse(&MINIMAL.replace("sqlite:certdist.db", url)).unwrap();
    assert_eq!(&*config.database, url);
    assert!(!format!("{config:?}").contains("s3cret"));
    let error = error(&MINIMAL.replace("sqlite:certdist.db", "postgres:anna:s3cret@db"));
    assert!(error.contains("postgres://USER") && !error.contains("s3cret"), "{error}");
}

#[test]
fn every_key_is_in_the_example_and_in_the_documentation() {
    let example: toml::Table = whole_example().parse().unwrap();
    let documentation = include_str!("../../docs/operations.md");
    let table: Vec<&str> = documentation.lines().filter(|line| line.starts_with('|')).collect();
    let cells: String = table.iter().filter_map(|line| line.split('|').nth(1)).collect();
    let all = Config::keys();
    assert!(all.iter().map(|(_, keys)| keys.len()).sum::<usize>() >= 38, "{all:?}");
    for (section, keys) in all {
        for key in keys {
            let in_example = match example.get(section) {
                _ if section.is_empty() => example.contains_key(*key),
                Some(toml::Value::Array(tables)) => tables.iter().any(|table| table.get(key).is_some()),
                Some(table) => table.get(key).is_some(),
                None => false,
            };
            assert!(in_example, "[{section}] {key} is not in certdist.example.toml");
            let documented = [
                format!("`{key}`"),
                format!(" {key}`"),
                format!(".{key}]]`"),
                format!("[[{section}.{key}]]"),
            ]
            .iter()
            .any(|key| cells.contains(key));
            assert!(documented, "[{section}] {key} is not in the table of docs/operations.md");
        }
    }
}

#[test]
fn all_errors_are_reported_at_once_in_the_order_of_the_lines() {
    let error = error(
        "listen = \"localhost\"\n\
         databse = \"sqlite:a.db\"\n\
         path_mtu = 1280\n\
         [limit]\n\
         [admin]\n\
         listen = 9684\n\
         [limits]\n\
         max_sessions = 0\n\
         max_handshakes = -1\n\
         path_mtu = 1\n\
         patience = \"20s\"\n\
         requests_per_address = { burst = 0, every = 1 }\n\
         [[enrollment]]\n\
         name = \"lamp\"\n\
         produkt_key = \"a1\"\n\
         kind = \"derive\"\n\
         key = \"hex:00\"\n\
         [[enrollment]]\n\
         name = \"plug\"\n\
         product_key = \"\"\n\
         kind = \"shared\"\n\
         key = 1234567890\n\
         identity = \"\"\n\
         reissue = \"never\"\n\
         [iot_platform]\n\
         endpoint = \"http://127.0.0.1:1\"\n\
         qps = 0\n\
         credentials = \"hush\"\n",
    );
    let lines: Vec<&str> = error.lines().map(str::trim).collect();
    let expected = [
        "22 errors",
        "database is missing; expected a line such as database = \"sqlite:certdist.db\"",
        "line 1: listen: invalid socket address, expected ADDRESS:PORT, such as 0.0.0.0:5684",
        "line 2: databse: unknown key; did you mean database?",
        "line 3: path_mtu: unknown key; it belongs in [limits]",
        "line 4: [limit]: unknown section; did you mean limits?",
        "line 6: [admin] listen: ",
        "line 8: [limits] max_sessions = 0: expected 1 to 10000000 sessions",
        "line 9: [limits] max_handshakes = -1: expected 1 to 1000000 handshakes",
        "line 10: [limits] path_mtu = 1: expected 576 to 9000 bytes",
        "line 11: [limits] patience: ",
        "line 12: [limits] requests_per_address = { burst = 0, every = 1 }: expected a burst of 1",
        "line 13: [[enrollment]] \"lamp\" product_key is missing; expected a line such as product_key = \"a1BwAGVxyz1\"",
        "line 15: [[enrollment]] produkt_key: unknown key; did you mean product_key?",
        "line 16: [[enrollment]] \"lamp\" kind: unknown variant `derive`, expected one of `individual`",
        "line 17: [[enrollment]] \"lamp\" key = \"hex:…\": 1 bytes, expected 16 to 64",
        "line 20: [[enrollment]] \"plug\" product_key is empty",
        "line 22: [[enrollment]] \"plug\" key: expected a string",
        "line 23: [[enrollment]] \"plug\" identity has 0 bytes, expected 1 to 128",
        "line 24: [[enrollment]] \"plug\" reissue = \"never\": expected \"always\"",
        "line 25: [iot_platform] region is missing; expected a line such as region = \"cn-shanghai\"",
        "line 27: [iot_platform] qps = 0: expected 1 to 100000 calls a second",
        "line 28: [iot_platform] credentials: expected \"env\", \"file\"",
    ];
    assert_eq!(lines.len(), expected.len(), "{error}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected), "{line}\n{expected}");
    }
    assert!(!error.contains("1234567890") && !error.contains("hush"), "{error}");
}

#[test]
fn broken_toml_is_reported_with_its_lines_but_not_its_text() {
    let error = error(&format!("{MINIMAL}key = \"hex:0102\nname = lamp\n"));
    assert!(error.contains("line 9: ") && error.contains("line 10: "), "{error}");
    assert!(!error.contains("0102"), "{error}");
}

#[test]
fn a_section_in_the_wrong_brackets_is_reported() {
    assert!(
        error(&MINIMAL.replace("[[enrollment]]", "[enrollment]"))
            .contains("line 4: enrollment is not a [[enrollment]]")
    );
    assert!(
        error(&format!("limits = 3\n{MINIMAL}"))
            .contains("line 1: limits is not a section; expected [limits]")
    );
}

fn with_variables(text: &str, variables: &[(&str, &str)]) -> Result<Config> {
    let variables: Vec<_> = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    Ok(Config::parse_with(text, Path::new("/etc/certdist"), &variables, Secrets::Required)?)
}

#[test]
fn a_password_in_the_url_of_the_database_is_a_secret_of_the_file() {
    let with = |database: &str, variables: &[(&str, &str)]| {
        let text = MINIMAL.replace("sqlite:certdist.db", database);
        let text = text.replace("kind = \"derived\"", "kind = \"individual\"");
        let text = text.replace("key = \"hex:000102030405060708090a0b0c0d0e0f\"", "");
        assert!(text.contains(database), "{text}");
        with_variables(&text, variables).unwrap().has_inline_secrets
    };
    assert!(with("postgres://certdist:s3cret@db1,db2/certdist", &[]));
    assert!(with("postgres://db1/certdist?user=certdist&password=s3cret", &[]));
    assert!(!with("postgres://certdist@db1:5432/certdist", &[]));
    assert!(!with("sqlite:data:old@1.db", &[]));
    // A password in the variable is not in the file.
    let variable = [("CERTDIST_DATABASE", "postgres://certdist:s3cret@db1/certdist")];
    assert!(!with("sqlite:data.db", &variable));
}

#[test]
fn variables_replace_keys_before_anything_is_checked() {
    let wrong = MINIMAL.replace("127.0.0.1:5684", "localhost");
    let config = with_variables(
        &wrong,
        &[
            ("CERTDIST_LISTEN", "[::]:5684"),
            ("CERTDIST_DATABASE", "sqlite:/var/lib/certdist/certdist.db"),
            ("CERTDIST_ADMIN__LISTEN", "127.0.0.1:9684"),
            ("CERTDIST_LIMITS__WORKERS", "3"),
            ("CERTDIST_LIMITS__EXTENDED_MASTER_SECRET", "required"),
            ("CERTDIST_LIMITS__REQUESTS_PER_ADDRESS", "{ burst = 5, every = 1 }"),
            ("CERTDIST_IOT_PLATFORM__ENDPOINT", "http://127.0.0.1:8086"),
            ("CERTDIST_IOT_PLATFORM__REGION", "cn-shanghai"),
            ("CERTDIST_IOT_PLATFORM__INSTANCE_ID", "0123"),
            ("CERTDIST_IOT_PLATFORM__QPS", "12.5"),
            ("CERTDIST_IOT_PLATFORM__CREDENTIALS", "ecs-role"),
            // An empty variable counts as absent.
            ("CERTDIST_LIMITS__PATIENCE", ""),
            // A container cluster sets these variables for a service named certdist.
            ("CERTDIST_PORT", "udp://10.0.0.1:5684"),
            ("CERTDIST_SERVICE_HOST", "10.0.0.1"),
        ],
    )
    .unwrap();
    assert_eq!(config.listen, ["[::]:5684".parse().unwrap()]);
    assert_eq!(&*config.database, "sqlite:/var/lib/certdist/certdist.db");
    assert_eq!(config.admin.unwrap().listen, "127.0.0.1:9684".parse().unwrap());
    assert_eq!(config.limits.workers, 3);
    assert!(config.limits.dtls.require_extended_master_secret);
    assert_eq!(config.limits.requests.per_address, Rate::new(5, Duration::from_secs(1)));
    assert_eq!(config.limits.patience, Limits::default().patience);
    let [Target { settings: Ok(cloud), .. }] = &config.targets[..] else { panic!("one target") };
    assert_eq!((cloud.client.instance_id.as_str(), cloud.qps), ("0123", 12.5));
}

#[test]
fn a_server_listens_on_one_address_or_on_several() {
    let listen = |value: &str| {
        let text = MINIMAL.replace("\"127.0.0.1:5684\"", value);
        parse(&text).map(|config| config.listen).map_err(|error| format!("{error:#}"))
    };
    let addresses =
        |all: &[&str]| Ok(all.iter().map(|one| one.parse().unwrap()).collect::<Vec<SocketAddr>>());
    assert_eq!(listen("\"127.0.0.1:5684\""), addresses(&["127.0.0.1:5684"]));
    let two = r#"["192.0.2.1:5684", "[2001:db8::1]:5684"]"#;
    assert_eq!(listen(two), addresses(&["192.0.2.1:5684", "[2001:db8::1]:5684"]));
    assert_eq!(listen(r#"["127.0.0.1:0", "127.0.0.1:0"]"#), addresses(&["127.0.0.1:0", "127.0.0.1:0"]));
    let variable = with_variables(MINIMAL, &[("CERTDIST_LISTEN", two)]).unwrap();
    assert_eq!(Ok(variable.listen), listen(two));

    let many =
        format!("[{}]", (1..=17).map(|port| format!("\"[::]:{port}\"")).collect::<Vec<_>>().join(", "));
    for (wrong, expected) in [
        ("[]", "line 2: listen has 0 addresses, expected 1 to 16"),
        (&many, "line 2: listen has 17 addresses, expected 1 to 16"),
        (r#"["[::]:1", "[::]:1"]"#, "line 2: listen: [::]:1 is there twice"),
        (r#"["[::]:1", "here"]"#, "line 2: listen: invalid socket address, expected ADDRESS:PORT, such as"),
        ("5684", "line 2: listen: "),
    ] {
        let error = listen(wrong).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_wrong_variable_is_named() {
    for (name, value, expected) in [
        ("CERTDIST_LIMITS__WORKERS", "many", "CERTDIST_LIMITS__WORKERS: [limits] workers: "),
        (
            "CERTDIST_LIMITS__WORKERS",
            "0",
            "CERTDIST_LIMITS__WORKERS: [limits] workers = 0: expected 1 to 256 threads",
        ),
        (
            "CERTDIST_LIMITS__WORKER",
            "2",
            "CERTDIST_LIMITS__WORKER: worker: unknown key; did you mean workers?",
        ),
        ("CERTDIST_LISTN", "[::]:1", "CERTDIST_LISTN: listn: unknown key; did you mean listen?"),
        ("CERTDIST_LISTEN", "here", "CERTDIST_LISTEN: listen: invalid socket address"),
        ("CERTDIST_TARGET__REGION", "r", "a [[target]] cannot be set by variables; set its keys in the file"),
        (
            "CERTDIST_ENROLLMENT__KEY",
            "hex:00",
            "cannot be set by variables; to read its key from one, use key = \"env:NAME\"",
        ),
    ] {
        let error = format!("{:#}", with_variables(MINIMAL, &[(name, value)]).unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn changes_that_need_a_restart_are_reported_by_their_keys() {
    let cloud =
        "[iot_platform]\nendpoint = \"http://127.0.0.1:1\"\nregion = \"r\"\ncredentials = \"ecs-role\"\n";
    let plain = "[plain_coap]\nlisten = \"127.0.0.1:5683\"\nenrollment = \"lamp\"\n";
    let before = format!("{MINIMAL}{cloud}{plain}[admin]\nlisten = \"127.0.0.1:1\"\n[limits]\n");
    let config = parse(&before).unwrap();
    for (right, other, expected) in [
        ("127.0.0.1:5684", "127.0.0.1:5685", "listen"),
        ("certdist.db", "other.db", "database"),
        ("127.0.0.1:1\"\nreg", "127.0.0.1:2\"\nreg", "[iot_platform] endpoint"),
        ("region = \"r\"", "region = \"s\"", "[iot_platform] region"),
        ("region", "instance_id = \"i\"\nregion", "[iot_platform] instance_id"),
        ("region", "qps = 1\nregion", "[iot_platform] qps"),
        ("region", "batches = false\nregion", "[iot_platform] batches"),
        ("region", "manage = true\nregion", "[iot_platform] manage"),
        ("region", "sweep = \"off\"\nregion", "[iot_platform] sweep"),
        ("ecs-role", "ecs-role:certdist", "[iot_platform] credentials"),
        ("region", "metadata_token = \"required\"\nregion", "[iot_platform] credentials"),
        ("region", "signature = \"v3\"\nregion", "[iot_platform] signature"),
        ("region", "connect_timeout = 1\nregion", "[iot_platform] connect_timeout"),
        ("region", "first_byte_timeout = 7\nregion", "[iot_platform] first_byte_timeout"),
        ("region", "timeout = 20\nregion", "[iot_platform] timeout"),
        (cloud, "", "[iot_platform]"),
        ("127.0.0.1:1\"\n[limits]", "127.0.0.1:2\"\n[limits]", "[admin] listen"),
        ("127.0.0.1:5683", "127.0.0.1:5682", "[plain_coap] listen"),
        (plain, "", "[plain_coap]"),
        ("database = ", "server_name = \"east\"\ndatabase = ", "server_name"),
        ("[limits]", "[limits]\nworkers = 99", "[limits] workers"),
        ("[limits]", "[limits]\nmax_sessions = 9", "[limits] max_sessions"),
        ("[limits]", "[limits]\nsessions_per_device = 9", "[limits] sessions_per_device"),
        ("[limits]", "[limits]\nmax_handshakes = 9", "[limits] max_handshakes"),
        ("[limits]", "[limits]\nmax_handshakes_per_address = 9", "[limits] max_handshakes_per_address"),
        ("[limits]", "[limits]\nhandshake_timeout = 9", "[limits] handshake_timeout"),
        ("[limits]", "[limits]\nsession_idle = 9", "[limits] session_idle"),
        ("[limits]", "[limits]\nsession_max_age = 9", "[limits] session_max_age"),
        ("[limits]", "[limits]\nretransmission_timeout = 0.5", "[limits] retransmission_timeout"),
        ("[limits]", "[limits]\npath_mtu = 999", "[limits] path_mtu"),
        ("[limits]", "[limits]\nextended_master_secret = \"required\"", "[limits] extended_master_secret"),
        ("[limits]", "[limits]\npatience = 9", "[limits] patience"),
        ("[limits]", "[limits]\ndrain = 9", "[limits] drain"),
    ] {
        let other = before.replace(right, other);
        assert_ne!(other, before, "{expected}");
        assert_eq!(config.needs_restart(&parse(&other).unwrap()), [expected]);
    }
    assert_eq!(config.needs_restart(&config.clone()), [] as [&str; 0]);

    let token = "[[admin.token]]\nname = \"t\"\nrole = \"viewer\"\nhash = \"sha256:HASH\"\n";
    let token = token.replace("HASH", &"5c".repeat(32));
    let before = &format!("{MINIMAL}[audit]\n[admin]\nlisten = \"127.0.0.1:1\"\n{token}");
    // A running server applies each of these changes.
    for (right, other) in [
        ("000102", "ff0102"),
        ("[audit]", "key_next = \"hex:ff0102030405060708090a0b0c0d0e0f\"\n[audit]"),
        ("lamp", "lamps"),
        ("[[enrollment]]", "[limits]\nrequests_per_identity = \"off\"\n[[enrollment]]\nreissue = \"once\""),
        ("[audit]", "[audit]\nkeep_days = 1\nmax_rows = 1"),
        ("\"viewer\"", "\"operator\""),
        (&token, ""),
        ("[admin]", "[admin]\nrequire_token = true"),
        ("[admin]", "[admin]\nhosts = [\"console.example.com\"]"),
        (
            &token,
            "[[admin.user]]\nname = \"u\"\nrole = \"viewer\"\npassword_hash = \
             \"$argon2id$v=19$m=19456,t=2,p=1$w1piVqgF9gCMq+f8/lAMuA$Nx1fxFQ43tm0BYH93+/gq8QcsDPJnQ4P7iiO2NTBIaQ\"\n",
        ),
    ] {
        let other = parse(&before.replace(right, other)).unwrap();
        assert_eq!(parse(before).unwrap().needs_restart(&other), [] as [&str; 0]);
    }
}

#[test]
fn database_keys_are_read_from_files_and_errors_do_not_repeat_the_key() {
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
fn the_name_of_a_server_is_one_short_line() {
    let named = |name: &str| parse(&format!("server_name = \"{name}\"\n{MINIMAL}"));
    for good in ["a", "shanghai-1:5684", &"東".repeat(64)] {
        assert_eq!(named(good).unwrap().server_name.as_deref(), Some(good));
    }
    assert_eq!(parse(MINIMAL).unwrap().server_name, None);
    for bad in ["", " a", "a ", "a\\nb", &"a".repeat(65)] {
        let error = format!("{:#}", named(bad).expect_err(bad));
        assert!(error.contains("server_name: expected 1 to 64 characters"), "{bad}: {error}");
    }
}

#[test]
fn how_much_of_the_audit_log_is_kept_can_be_set() {
    let audit = |section: &str| parse(&format!("{MINIMAL}[audit]\n{section}")).unwrap().audit;
    assert_eq!(parse(MINIMAL).unwrap().audit, Audit::default());
    let set = Audit { keep_days: Some(30), max_rows: Some(0), max_repeats: None };
    assert_eq!(audit("keep_days = 30\nmax_rows = 0"), set);
    let set = Audit { keep_days: None, max_rows: None, max_repeats: Some(7) };
    assert_eq!(audit("keep_days = 0\nmax_repeats = 7"), set);
}

/// A company with many factories has thousands of enrollments, and each command reads them all.
#[test]
fn the_time_to_read_grows_no_faster_than_the_file() {
    let text = |enrollments: usize| {
        let mut text = "listen = \"127.0.0.1:5684\"\ndatabase = \"sqlite:certdist.db\"\n".to_owned();
        for number in 0..enrollments {
            text += &format!(
                "[[enrollment]]\nname = \"e{number}\"\nproduct_key = \"a{number}\"\nkind = \"shared\"\n\
                 identity = \"i{number}\"\nkey = \"hex:000102030405060708090a0b0c0d0e0f\"\n"
            );
        }
        text
    };
    // The test measures the processor time of this thread, so that other work on the machine does
    // not count.
    let spent = || std::time::Duration::from(ClockId::CLOCK_THREAD_CPUTIME_ID.now().unwrap());
    let best = |text: &str| {
        let once = |_| {
            let begun = spent();
            parse(text).unwrap();
            spent() - begun
        };
        (0..5).map(once).min().unwrap()
    };
    let [few, many] = [text(250), text(4000)].map(|text| best(&text));
    // The second file is 16 times as long. If each key caused a search of the whole file, reading
    // the second file would take 256 times as long.
    assert!(many < few * 64, "{few:?} for 250 enrollments, {many:?} for 4000");
}
