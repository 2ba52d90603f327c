//! Checks the order of the modules: each module may use only the modules that `MAY_USE` lists for
//! it, all of which are below it. docs/architecture.md shows this order. Also checks that the
//! documents name only files and modules that exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// The modules of the crate, from the highest to the lowest, each with the modules that it may use.
const MAY_USE: [(&str, &[&str]); 39] = [
    (
        "cli",
        &[
            "admin",
            "app",
            "company",
            "config",
            "device",
            "device_view",
            "guards",
            "iot_platform",
            "new_file",
            "rate_limit",
            "notify",
            "obstacles",
            "ordering",
            "password",
            "policy",
            "presence",
            "psk",
            "registrar",
            "server",
            "simulated_device",
            "store",
            "table_file",
            "tablestore",
            "target",
        ],
    ),
    (
        "app",
        &[
            "admin",
            "resource",
            "company",
            "config",
            "device",
            "iot_platform",
            "presence",
            "provision",
            "psk",
            "random",
            "registrar",
            "server",
            "store",
            "target",
        ],
    ),
    (
        "admin",
        &[
            "resource",
            "coap",
            "company",
            "config",
            "device",
            "device_view",
            "dtls",
            "guards",
            "histogram",
            "iot_platform",
            "rate_limit",
            "obstacles",
            "operators",
            "ordering",
            "password",
            "policy",
            "psk",
            "random",
            "recent",
            "registrar",
            "server",
            "store",
            "table_file",
        ],
    ),
    ("presence", &["company", "config", "registrar", "server", "store", "target"]),
    (
        "config",
        &[
            "resource",
            "device",
            "dtls",
            "guards",
            "iot_platform",
            "rate_limit",
            "operators",
            "password",
            "psk",
            "seal",
            "server",
            "target",
        ],
    ),
    (
        "server",
        &[
            "coap",
            "device",
            "dtls",
            "histogram",
            "log_limit",
            "psk",
            "random",
            "rate_limit",
            "recent",
            "resource",
            "store",
            "unix_time",
        ],
    ),
    ("resource", &["coap", "device", "log_limit", "provision", "psk", "rate_limit", "recent", "unix_time"]),
    ("ordering", &["device", "policy", "psk", "registrar", "store"]),
    ("provision", &["device", "guards", "log_limit", "rate_limit", "policy", "psk", "registrar", "store"]),
    ("registrar", &["device", "guards", "histogram", "iot_platform", "log_limit", "store", "target"]),
    ("company", &["store"]),
    ("device_view", &["policy", "psk", "store"]),
    ("table_file", &["device", "psk", "store", "target"]),
    ("obstacles", &["guards", "policy", "psk", "store"]),
    ("policy", &["guards", "psk", "store"]),
    ("psk", &["device", "guards", "store"]),
    ("store", &["device", "histogram", "new_file", "random", "seal", "target", "unix_time"]),
    ("simulated_device", &["device", "iot_platform"]),
    ("tablestore", &["device", "iot_platform"]),
    ("iot_platform", &["device", "unix_time"]),
    ("password", &["device"]),
    ("new_file", &["random"]),
    ("seal", &["device"]),
    // The cores `dtls` and `coap` use no other module of the crate.
    ("recent", &["unix_time"]),
    ("dtls", &[]),
    ("coap", &[]),
    ("device", &[]),
    ("guards", &["unix_time"]),
    ("histogram", &[]),
    ("log_limit", &[]),
    ("rate_limit", &[]),
    ("notify", &[]),
    ("operators", &[]),
    ("random", &[]),
    ("target", &[]),
    ("unix_time", &[]),
    ("lib", &[]),
    ("main", &[]),
    ("tests", &[]),
];

/// Returns whether only tests use this file. Such a file may use any module.
fn is_of_tests(path: &Path) -> bool {
    let name = path.to_string_lossy();
    ["/tests/", "/tests.rs", "/testing/", "store/contract.rs", "store/contract/"]
        .iter()
        .any(|part| name.contains(part))
}

/// Returns the modules that a file names after `crate::`, with or without braces.
fn named(text: &str) -> BTreeSet<String> {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let is_whole_word = !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        if !is_whole_word {
            continue;
        }
        let word = |text: &str| {
            text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("").to_owned()
        };
        let Some(list) = rest.strip_prefix('{') else {
            found.insert(word(rest));
            continue;
        };
        let (mut depth, mut begins) = (0, true);
        for (at, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                c if begins && !c.is_whitespace() => {
                    begins = false;
                    found.insert(word(&list[at..]));
                }
                _ => {}
            }
        }
    }
    found.remove("");
    found
}

fn walk(folder: &Path, found: &mut BTreeMap<String, BTreeMap<String, String>>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            walk(&path, found);
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "rs") || is_of_tests(&path) {
            continue;
        }
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let relative = path.strip_prefix(&source).expect("within src");
        let first = relative.components().next().expect("a name").as_os_str().to_string_lossy();
        let module = first.trim_end_matches(".rs").to_owned();
        let text = fs::read_to_string(&path).expect("UTF-8");
        for other in named(&text) {
            let uses = found.entry(module.clone()).or_default();
            uses.entry(other).or_insert_with(|| relative.display().to_string());
        }
    }
}

#[test]
fn dependencies_point_downward_only() {
    for (at, (module, below)) in MAY_USE.iter().enumerate() {
        for other in *below {
            let stands = MAY_USE.iter().position(|(name, _)| name == other);
            assert!(stands.is_some_and(|stands| stands > at), "{other} does not stand below {module}");
        }
    }
    let mut found = BTreeMap::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert!(found.len() > 12, "{found:?}");
    for (module, uses) in &found {
        let (_, may) =
            MAY_USE.iter().find(|(name, _)| name == module).unwrap_or_else(|| panic!("{module} is new"));
        for (other, file) in uses.iter().filter(|(other, _)| *other != module) {
            assert!(may.contains(&other.as_str()), "{file} uses {other}, which {module} may not");
        }
    }
    for (module, may) in MAY_USE {
        for other in may {
            let is_used = found.get(module).is_some_and(|uses| uses.contains_key(*other));
            assert!(is_used, "{module} does not use {other}: it need not be allowed");
        }
    }
}

/// Returns the lines of code in `text`, up to its tests, that name a kind of store.
fn kinds_of_store(text: &str) -> Vec<&str> {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let kinds = ["sqlite::", "::sqlite", "Sqlite", "postgres::", "::postgres", "Postgres"];
    let names = |line: &&str| kinds.iter().any(|name| line.contains(name));
    code.lines().filter(|line| !line.trim_start().starts_with("//")).filter(names).collect()
}

/// Only the module `store` may name a kind of store. Other modules know only its traits.
#[test]
fn no_module_above_the_store_knows_its_kind() {
    assert_eq!(kinds_of_store("use a::{\n    sqlite::Sqlite,\n};\n// Sqlite\nfn f() {}").len(), 1);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    paths(&root.join("src"), &mut files);
    let is_above = |path: &&String| {
        let outside = ["/src/store/", "/src/testing/", "/tests/", "/tests.rs"];
        path.ends_with(".rs") && !outside.iter().any(|part| path.contains(part))
    };
    let mut read = 0;
    for path in files.iter().filter(is_above) {
        let text = fs::read_to_string(root.join(&path[1..])).expect("UTF-8");
        assert_eq!(kinds_of_store(&text), Vec::<&str>::new(), "{path}");
        read += 1;
    }
    assert!(read > 80, "{read} files");
}

/// The cores must not re-export types of other libraries, so that they can become separate
/// crates.
#[test]
fn the_cores_show_no_library_of_theirs() {
    for core in ["dtls", "coap"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(core);
        let text = fs::read_to_string(folder.join("mod.rs")).expect("UTF-8");
        for line in text.lines().filter(|line| line.starts_with("pub use ")) {
            let first = line["pub use ".len()..].split("::").next().unwrap_or_default();
            assert!(text.contains(&format!("mod {first};")), "{core}: {line}");
        }
    }
}

#[test]
fn names_are_found_however_they_are_written() {
    let text = "use crate::{\n    a::{self, b},\n    c,\n    d::e,\n};\nfn f() { crate::g::h(); mycrate::x() }\n\
                #[cfg(test)]\nmod tests {\n use crate::z;";
    let expected = ["a", "c", "d", "g"].map(str::to_owned);
    assert_eq!(named(text), expected.into());
}

/// Collects the files and folders of the repository, relative to its root. A folder ends in a
/// slash.
fn paths(folder: &Path, found: &mut Vec<String>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let relative = path.strip_prefix(root).expect("within the repository").to_string_lossy();
        if path.is_dir() {
            found.push(format!("/{relative}/"));
            paths(&path, found);
        } else {
            found.push(format!("/{relative}"));
        }
    }
}

/// Returns false if a word of a document looks like the name of a file, folder or module that does
/// not exist. A document may leave out the first folders of a path.
fn exists(word: &str, paths: &[String]) -> bool {
    let is_name = |text: &str| text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if let Some((module, _)) = word.split_once("::") {
        let files = [format!("/{module}.rs"), format!("/{module}/mod.rs")];
        let is_file = |path: &String| {
            path.starts_with("/src/") && files.iter().any(|file| path.ends_with(file.as_str()))
        };
        return !is_name(module) || paths.iter().any(is_file);
    }
    let is_path = (word.ends_with(".rs") || word.ends_with('/')) && !word.starts_with(['/', '.']);
    let name = word.trim_end_matches(".rs").trim_end_matches('/');
    // `make` and `cargo` write these folders.
    let is_written = ["target/", "build/"].iter().any(|folder| word.starts_with(folder));
    if !is_path || is_written || !name.split('/').all(is_name) {
        return true;
    }
    paths.iter().any(|path| path.ends_with(&format!("/{word}")))
}

#[test]
fn the_documents_name_only_files_and_modules_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in ["src", "tests", "benches", "examples", "firmware", "fuzz", "docs", "packaging"] {
        found.push(format!("/{folder}/"));
        paths(&root.join(folder), &mut found);
    }
    let mut missing = Vec::new();
    for folder in [root.to_owned(), root.join("docs")] {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.extension().is_none_or(|extension| extension != "md") {
                continue;
            }
            let text = fs::read_to_string(&path).expect("UTF-8");
            for (number, line) in (1..).zip(text.lines()) {
                // After the split, every second part was between backticks.
                let words = line.split('`').skip(1).step_by(2);
                let words = words.filter(|word| !exists(word, &found));
                missing.extend(words.map(|word| format!("{}:{number}: {word}", path.display())));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// Every file of `src/` that is not a test has a row in a table of docs/architecture.md, which says what
/// the file decides.
#[test]
fn the_page_about_the_structure_has_a_row_for_each_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/architecture.md")).expect("UTF-8");
    let mut found = Vec::new();
    paths(&root.join("src"), &mut found);
    let files = found.iter().filter_map(|path| path.split_once("/src/").map(|(_, file)| file));
    let files = files.filter(|file| {
        let is_test = file
            .split('/')
            .any(|part| matches!(part, "tests" | "tests.rs" | "contract" | "contract.rs" | "testing"));
        file.ends_with(".rs") && !is_test
    });
    let has_row = |file: &str| page.lines().any(|line| line.starts_with(&format!("| `{file}`")));
    let missing: Vec<&str> = files.filter(|file| !has_row(file)).collect();
    assert!(missing.is_empty(), "no row for {missing:#?}");
}

#[test]
fn a_name_that_no_file_or_module_has_is_found() {
    let paths = ["/src/resource/", "/src/resource/body.rs", "/src/resource.rs", "/tests/clients/operator.rs"]
        .map(str::to_owned);
    for (word, expected) in [
        ("resource/", true),
        ("src/resource.rs", true),
        ("body.rs", true),
        ("resource::Service::answer", true),
        ("/cert", true),
        ("Registrar::finish", true),
        ("cert/", false),
        ("cert::Service::answer", false),
        ("src/cert.rs", false),
        ("tests/operator.rs", false),
        ("operator::tests", false),
    ] {
        assert_eq!(exists(word, &paths), expected, "{word}");
    }
}
