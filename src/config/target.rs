//! The targets: `[iot_platform]`, which is the target `default`, and each `[[target]]`. This module
//! also decides at which target the devices of an enrollment are registered.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use super::{
    IotPlatformSettings, Secrets,
    document::{Problems, Table},
    file, iot_platform,
};
use crate::{
    iot_platform::host::{MqttHost, mqtt_host},
    target,
};

/// Maximum number of targets that a message names.
const NAMED: usize = 10;

/// A cloud in which devices are registered.
#[derive(Debug, Clone)]
pub struct Target {
    /// Name of the target in rows, metrics and messages.
    pub name: String,
    /// Set for a `[[target]]`, and not for `[iot_platform]`.
    pub is_named: bool,
    /// Settings that determine the MQTT host of the target's devices. They are known even if
    /// credentials are missing.
    pub mqtt: MqttSettings,
    /// Settings of the calls. If credentials are missing, the error says which. This cloud then
    /// cannot be called, but the clouds of other targets can.
    pub settings: Result<IotPlatformSettings, String>,
}

/// Settings that determine the MQTT host of a target's devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MqttSettings {
    /// Configured host. If absent, the host of the instance or of the product is used.
    pub host: Option<MqttHost>,
    /// ID of the instance; empty for the public instance.
    pub instance_id: String,
    /// Region, such as `cn-shanghai`.
    pub region: String,
}

impl MqttSettings {
    /// Returns the MQTT host of a device of the product `product_key`, with a port if it is not the
    /// usual one.
    pub fn host_of(&self, product_key: &str) -> String {
        mqtt_host(self.host.as_ref(), &self.instance_id, &self.region, product_key)
    }
}

impl Target {
    /// Returns the header of the target's section, as messages name it.
    pub fn place(&self) -> String {
        match self.is_named {
            true => format!("[[target]] \"{}\"", self.name),
            false => "[iot_platform]".to_owned(),
        }
    }
}

/// The targets that were read, for checking the rest of the configuration.
pub(super) struct Targets {
    /// All targets, that of `[iot_platform]` first.
    pub(super) all: Vec<Target>,
    /// Set if the configuration has a `[[target]]`.
    pub(super) are_named: bool,
    /// Files from which credentials are taken.
    pub(super) secret_files: Vec<PathBuf>,
    /// Names of all targets, including those that have errors.
    names: Vec<String>,
}

impl Targets {
    /// Reads all targets. If there is a `[[target]]`, missing credentials are not an error, because
    /// the devices of the other targets can still be registered.
    pub(super) fn read(
        cloud: Option<Table<file::IotPlatformSection>>,
        named: Vec<Table<file::Target>>,
        (folder, secrets): (&Path, Secrets),
        problems: &mut Problems,
    ) -> Self {
        let are_named = !named.is_empty();
        let mut sections: Vec<(String, Table<file::IotPlatformSection>)> = Vec::new();
        sections.extend(cloud.map(|section| (target::DEFAULT.to_owned(), section)));
        let unnamed = sections.len();
        let mut names: HashSet<String> = sections.iter().map(|(name, _)| name.clone()).collect();
        for mut table in named {
            let name = table.values.name.clone();
            if let Err(expected) = target::check(&name) {
                table.wrong(problems, &["name"], format!("name = \"{}\": {expected}", name.escape_debug()));
            } else if !names.insert(name.clone()) {
                let what = match unnamed > 0 && name == target::DEFAULT {
                    true => "is the target of [iot_platform]; expected another name, or no [iot_platform]",
                    false => "is there twice; expected a different name for each",
                };
                table.wrong(problems, &["name"], what);
            }
            if sections.len() == target::MAX {
                let what = format!("is one target too many; expected at most {}", target::MAX);
                table.wrong(problems, &["name"], what);
                break;
            }
            sections.push((name, table.into()));
        }
        let names = sections.iter().map(|(name, _)| name.clone()).collect();
        let secret_files = sections
            .iter()
            .filter_map(|(_, section)| iot_platform::secret_file(&section.values, folder))
            .collect();
        let read = |(index, (name, section)): (usize, (String, Table<file::IotPlatformSection>))| {
            let file::Host(host) = section.values.host.clone();
            let (instance_id, region) = (section.values.instance_id.clone(), section.values.region.clone());
            let mqtt = MqttSettings { host, instance_id, region };
            let settings = iot_platform::read(section, (folder, secrets), are_named, problems)?;
            Some(Target { name, is_named: index >= unnamed, mqtt, settings })
        };
        let all = sections.into_iter().enumerate().filter_map(read).collect();
        Self { all, are_named, secret_files, names }
    }

    /// Returns the name of the target at which the devices of an enrollment are registered.
    pub(super) fn of(&self, table: &mut Table<file::Enrollment>, problems: &mut Problems) -> String {
        match (table.values.target.clone(), &self.names[..]) {
            (Some(name), names) => {
                if !names.contains(&name) {
                    let what = format!(
                        "target = \"{}\": no [[target]] has that name; {}",
                        name.escape_debug(),
                        self.known()
                    );
                    table.wrong(problems, &["target"], what);
                }
                name
            }
            (None, [only]) => only.clone(),
            (None, names) => {
                if !names.is_empty() && !names.iter().any(|name| name == target::DEFAULT) {
                    let what = format!(
                        "target is missing; expected a line such as target = \"{}\", because there are several \
                         [[target]]s and none is \"{}\"",
                        names[0],
                        target::DEFAULT
                    );
                    table.wrong(problems, &["target"], what);
                }
                target::DEFAULT.to_owned()
            }
        }
    }

    fn known(&self) -> String {
        let names: Vec<String> = self.names.iter().take(NAMED).map(|name| format!("\"{name}\"")).collect();
        match (self.names.len().saturating_sub(NAMED), names.is_empty()) {
            (_, true) => "there is no [iot_platform] and no [[target]]".to_owned(),
            (0, _) => format!("expected one of {}", names.join(", ")),
            (more, _) => format!("expected one of {} and {more} more", names.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::Config;

    const ROOT: &str = "listen = \"127.0.0.1:5684\"\ndatabase = \"sqlite:certdist.db\"\n";
    const CLOUD: &str =
        "[iot_platform]\nendpoint = \"http://127.0.0.1:1\"\nregion = \"r\"\ncredentials = \"ecs-role\"\n";

    /// Returns a `[[target]]`.
    fn target(name: &str, keys: &str) -> String {
        format!(
            "[[target]]\nname = \"{name}\"\nendpoint = \"http://127.0.0.1:2\"\nregion = \"r\"\n\
             credentials = \"ecs-role\"\n{keys}"
        )
    }

    /// Returns an `[[enrollment]]`.
    fn enrollment(name: &str, keys: &str) -> String {
        format!("[[enrollment]]\nname = \"{name}\"\nproduct_key = \"a1\"\nkind = \"individual\"\n{keys}")
    }

    fn read(parts: &[&str]) -> Result<Config, String> {
        let text = [&[ROOT], parts].concat().concat();
        Config::parse(&text, Path::new("/etc/certdist")).map_err(|error| format!("{error:#}"))
    }

    fn names(config: &Config) -> Vec<&str> {
        config.targets.iter().map(|target| target.name.as_str()).collect()
    }

    #[test]
    fn the_section_alone_is_the_default_target_and_names_none() {
        let config = read(&[CLOUD, &enrollment("lamp", "")]).unwrap();
        assert_eq!((names(&config), config.names_targets), (vec!["default"], false));
        assert_eq!(config.target_of["lamp"], "default");
        let config = read(&[&enrollment("lamp", "")]).unwrap();
        assert_eq!((names(&config), config.target_of["lamp"].as_str()), (vec![], "default"));
    }

    #[test]
    fn targets_come_after_the_default_one_with_their_own_settings() {
        let tokyo = target("tokyo", "qps = 5\ninstance_id = \"iot-1\"\nbatches = false\nsweep = \"off\"\n");
        let config =
            read(&[CLOUD, &tokyo, &target("osaka", ""), &enrollment("lamp", "target = \"tokyo\"\n")]);
        let config = config.unwrap();
        assert_eq!((names(&config), config.names_targets), (vec!["default", "tokyo", "osaka"], true));
        let settings = config.targets[1].settings.as_ref().unwrap();
        assert_eq!((settings.qps, settings.batches, settings.sweep), (5.0, false, None));
        assert_eq!(settings.client.instance_id, "iot-1");
        assert_eq!(config.target_of["lamp"], "tokyo");
    }

    #[test]
    fn an_enrollment_has_the_only_target_or_the_default_one_or_must_name_it() {
        let of = |parts: &[&str]| read(parts).map(|config| config.target_of["lamp"].clone());
        let (lamp, tokyo, osaka) = (enrollment("lamp", ""), target("tokyo", ""), target("osaka", ""));
        assert_eq!(of(&[&tokyo, &lamp]).as_deref(), Ok("tokyo"));
        assert_eq!(of(&[CLOUD, &tokyo, &lamp]).as_deref(), Ok("default"));
        assert_eq!(of(&[&tokyo, &target("default", ""), &lamp]).as_deref(), Ok("default"));
        let error = of(&[&tokyo, &osaka, &lamp]).unwrap_err();
        assert!(
            error.contains("line 13: [[enrollment]] \"lamp\" target is missing; expected a line such as target = \"tokyo\""),
            "{error}"
        );
        let named = enrollment("lamp", "target = \"kobe\"\n");
        let error = of(&[CLOUD, &tokyo, &named]).unwrap_err();
        let expected = "line 16: [[enrollment]] \"lamp\" target = \"kobe\": no [[target]] has that name; expected one of \
                        \"default\", \"tokyo\"";
        assert!(error.contains(expected), "{error}");
        let error = of(&[&named]).unwrap_err();
        assert!(error.contains("there is no [iot_platform] and no [[target]]"), "{error}");
    }

    #[test]
    fn names_are_unique_legal_and_not_too_many() {
        let lamp = enrollment("lamp", "target = \"tokyo\"\n");
        let error = |parts: &[&str]| read(parts).unwrap_err();
        let tokyo = target("tokyo", "");
        assert!(error(&[&tokyo, &tokyo, &lamp]).contains("line 9: [[target]] \"tokyo\" is there twice"));
        let default = error(&[CLOUD, &target("default", ""), &lamp]);
        assert!(default.contains("[[target]] \"default\" is the target of [iot_platform]"), "{default}");
        for wrong in ["", "a b", "a/b", "東京", &"x".repeat(33)] {
            let error = error(&[&target(wrong, ""), &tokyo, &lamp]);
            assert!(
                error.contains("expected 1 to 32 letters, digits or characters of ._-"),
                "{wrong}: {error}"
            );
        }
        let many =
            |count: usize| (0..count).map(|number| target(&format!("t{number}"), "")).collect::<String>();
        assert!(read(&[&many(31), &tokyo, &lamp]).is_ok());
        assert!(error(&[&tokyo, &many(32), &lamp]).contains("expected at most 32"));
        for (keys, expected) in [
            ("qps = 0\n", "line 8: [[target]] \"tokyo\" qps = 0: expected 1 to 100000 calls a second"),
            ("regin = 1\n", "line 8: [[target]] regin: unknown key; did you mean region?"),
            ("kind = 1\n", "line 8: [[target]] kind: unknown key; it belongs in [[enrollment]]"),
        ] {
            let error = error(&[&target("tokyo", keys), &lamp]);
            assert!(error.contains(expected), "{error}");
        }
        let error = error(&["[target]\nname = \"tokyo\"\n", &lamp]);
        assert!(error.contains("target is not a [[target]]"), "{error}");
    }

    #[test]
    fn credentials_that_are_missing_are_an_error_only_without_other_targets() {
        let lamp = enrollment("lamp", "");
        let lost = "credentials = \"file:/nowhere/certdist.ini\"";
        let without = |text: &str| text.replace("credentials = \"ecs-role\"", lost);
        assert!(read(&[&without(CLOUD), &lamp]).unwrap_err().contains("/nowhere/certdist.ini"));
        let config = read(&[&without(CLOUD), &target("tokyo", ""), &lamp]).unwrap();
        assert!(config.targets[0].settings.as_ref().unwrap_err().contains("/nowhere/certdist.ini"));
        assert!(config.targets[1].settings.is_ok());
        let config = read(&[CLOUD, &without(&target("tokyo", "")), &lamp]).unwrap();
        assert!(config.targets[0].settings.is_ok() && config.targets[1].settings.is_err());
        assert!(config.secret_files.iter().any(|file| file.ends_with("certdist.ini")));
        // Every other mistake in a target is an error, even if there are other targets.
        assert!(read(&[CLOUD, &target("tokyo", "timeout = 1\nconnect_timeout = 2\n"), &lamp]).is_err());
    }

    #[test]
    fn a_changed_target_needs_a_restart_and_the_target_of_an_enrollment_does_not() {
        let with = |targets: &str, keys: &str| read(&[CLOUD, targets, &enrollment("lamp", keys)]).unwrap();
        let before = with(&target("tokyo", ""), "");
        for (targets, changed) in [
            (target("tokyo", ""), &[][..]),
            (target("tokyo", "qps = 1\n"), &["[[target]]"]),
            (target("osaka", ""), &["[[target]]"]),
            (target("tokyo", "") + &target("osaka", ""), &["[[target]]"]),
            (String::new(), &["[[target]]"]),
        ] {
            assert_eq!(before.needs_restart(&with(&targets, "")), changed, "{targets}");
        }
        // The MQTT host follows from `host` and `instance_id`, even while the credentials are
        // missing.
        let lost = |keys: &str| {
            let text = target("tokyo", keys).replace("ecs-role", "file:/nowhere/certdist.ini");
            with(&text, "")
        };
        for keys in ["host = \"mqtt.example\"\n", "instance_id = \"iot-1\"\n"] {
            assert_eq!(lost("").needs_restart(&lost(keys)), ["[[target]]"], "{keys}");
        }
        assert_eq!(lost("").needs_restart(&lost("qps = 1\n")), [""; 0]);
        let moved = with(&target("tokyo", ""), "target = \"tokyo\"\n");
        assert_eq!(before.needs_restart(&moved), [""; 0]);
        let renamed = read(&[&target("default", ""), &target("tokyo", ""), &enrollment("lamp", "")]).unwrap();
        assert_eq!(before.needs_restart(&renamed), ["[iot_platform]", "[[target]]"]);
    }
}
