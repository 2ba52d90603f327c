//! The files by which other build systems take the device's half: Zephyr, ESP-IDF, Arduino, and lwIP
//! with threads. Their kernels are in no package registry, so the ports are compiled against the
//! declarations in `tests/foreign/glue`, and the rest is linted.

use std::{fs, path::Path, process::Command};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Returns a path of `build/firmware.mk`.
fn source_of(name: &str) -> String {
    let file = Path::new(ROOT).join("build/firmware.mk");
    let paths = fs::read_to_string(&file).expect("written by `make clients`");
    let path = paths.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" := "));
    path.expect("a path").to_owned()
}

/// Checks C sources without building them.
fn compiles(flags: &[&str], sources: &[&str]) {
    let output = Command::new("cc")
        .args(["-std=gnu99", "-fsyntax-only", "-Wall", "-Wextra", "-Wconversion", "-Werror"])
        .args(flags)
        .args(sources)
        .current_dir(ROOT)
        .output()
        .expect("cc");
    assert!(output.status.success(), "{sources:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_ports_compile_against_the_declarations_of_their_systems() {
    let socket = "firmware/ports/posix/cd_socket.c";
    let kit = "-Ifirmware/include";
    compiles(&[kit, "-D__ZEPHYR__", "-Itests/foreign/glue"], &[socket, "firmware/ports/zephyr/cd_zephyr.c"]);
    compiles(&[kit, "-Itests/foreign/glue/esp-idf"], &[socket, "firmware/ports/esp-idf/cd_esp.c"]);
    let lwip = source_of("LWIP");
    let folders = [format!("{lwip}/src/include"), format!("{lwip}/contrib/ports/unix/port/include")];
    compiles(
        &[
            kit,
            "-DCD_LWIP",
            "-isystem",
            "tests/foreign/glue/lwip",
            "-isystem",
            &folders[0],
            "-isystem",
            &folders[1],
        ],
        &[socket, "firmware/ports/lwip/certdist_lwip_thread.c"],
    );
}

/// Arduino compiles each file of `src`, and looks for headers only there.
#[test]
fn the_sources_compile_as_an_arduino_library() {
    let mbedtls = format!("{}/include", source_of("MBEDTLS"));
    let folder = fs::read_dir(Path::new(ROOT).join("firmware/src")).expect("the sources");
    let paths = folder.map(|entry| entry.expect("an entry").path());
    let sources: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "c")).collect();
    assert!(sources.len() > 8, "{sources:?}");
    for source in &sources {
        let flags = ["-DARDUINO=10819", "-DARDUINO_ARCH_ESP32", "-Ifirmware/src"];
        let systems = ["-isystem", "tests/foreign/glue/esp-idf", "-isystem", &mbedtls];
        compiles(&[&flags[..], &systems[..]].concat(), &[source.to_str().expect("UTF-8")]);
    }
}

#[test]
fn the_files_of_the_build_systems_pass_their_linters() {
    let python = Path::new(ROOT).join("build/glue/bin/python");
    let lints = [
        &["-m", "cmakelang.lint", "CMakeLists.txt", "zephyr/CMakeLists.txt"][..],
        &["-c", "import kconfiglib, sys; sys.exit('\\n'.join(kconfiglib.Kconfig('Kconfig').warnings) or 0)"],
        &[
            "-c",
            "import kconfiglib, sys; sys.exit('\\n'.join(kconfiglib.Kconfig('zephyr/Kconfig').warnings) or 0)",
        ],
    ];
    for arguments in lints {
        let mut command = Command::new(&python);
        let output = command.args(arguments).current_dir(Path::new(ROOT).join("firmware")).output();
        let output = output.expect("installed by `make clients`");
        let told = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&told));
    }
}

#[test]
fn every_build_system_names_the_same_version_and_files_that_exist() {
    let read =
        |name: &str| fs::read_to_string(Path::new(ROOT).join("firmware").join(name)).expect("it is there");
    let header = read("include/certdist.h");
    let version = header.split("#define CD_VERSION \"").nth(1).and_then(|rest| rest.split('"').next());
    let version = version.expect("a version");
    assert!(read("idf_component.yml").contains(&format!("version: \"{version}\"\n")));
    let properties = read("library.properties");
    assert!(properties.contains(&format!("version={version}\n")));
    for field in ["name", "author", "maintainer", "sentence", "paragraph", "category", "url", "architectures"]
    {
        let value = properties.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix('='));
        assert!(value.is_some_and(|value| !value.is_empty()), "library.properties has no {field}");
    }
    let zephyr = read("zephyr/CMakeLists.txt").replace("${CERTDIST_ROOT}/", "");
    for list in [read("CMakeLists.txt"), zephyr] {
        let words = list.split_whitespace().map(|word| word.trim_end_matches(')'));
        let sources: Vec<_> = words.filter(|word| word.ends_with(".c")).collect();
        assert!(sources.len() >= 9, "{sources:?}");
        for source in sources {
            assert!(Path::new(ROOT).join("firmware").join(source).exists(), "{source}");
        }
    }
}
