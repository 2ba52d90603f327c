//! Reads the credentials file that Alibaba Cloud's SDKs share: INI with a section for each
//! profile. Makes no network call.

use std::{collections::HashMap, env, fs, os::unix::fs::MetadataExt, path::Path, path::PathBuf};

use zeroize::Zeroizing;

use super::Credentials;
use crate::device::Secret;

/// Profile that is read by default.
pub(crate) const DEFAULT_PROFILE: &str = "default";

/// Maximum size of the file, in bytes.
const MAX_FILE: u64 = 64 * 1024;

/// State of a file. Two states differ if the file has changed in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    size: u64,
    /// Time of the last write, in seconds and nanoseconds. If the file is written in place, this
    /// time changes, but the inode stays. If another file is moved to the path, the inode changes,
    /// but the time may be older.
    written: (i64, i64),
    changed: (i64, i64),
}

/// Content of a profile.
pub(super) enum Profile {
    Key(Credentials),
    /// A RAM role, with its name if the profile has one.
    Role(Option<String>),
}

pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some(Stamp {
        inode: metadata.ino(),
        size: metadata.size(),
        written: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

/// Returns the path that the SDKs use: the value of `ALIBABA_CLOUD_CREDENTIALS_FILE`, or else
/// `credentials` or `credentials.ini` in `~/.alibabacloud`.
pub(crate) fn usual_path() -> Option<PathBuf> {
    let named = |name| env::var_os(name).filter(|value| !value.is_empty());
    if let Some(path) = named("ALIBABA_CLOUD_CREDENTIALS_FILE") {
        return Some(path.into());
    }
    let folder = PathBuf::from(named("HOME")?).join(".alibabacloud");
    let path = folder.join("credentials");
    let ini = folder.join("credentials.ini");
    Some(if !path.exists() && ini.exists() { ini } else { path })
}

/// Returns the profile that `ALIBABA_CLOUD_PROFILE` names, or `default`.
pub(crate) fn usual_profile() -> String {
    env::var("ALIBABA_CLOUD_PROFILE")
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| DEFAULT_PROFILE.into())
}

/// Reads one profile. An error says what is expected, and does not repeat any line of the file.
pub(super) fn read(path: &Path, profile: &str) -> Result<Profile, String> {
    let shown = path.display();
    let cannot = |what: String| format!("credentials file {shown}: {what}");
    let size = fs::metadata(path).map_err(|error| cannot(format!("cannot be read ({error})")))?.len();
    if size > MAX_FILE {
        return Err(cannot(format!("{size} bytes, expected an INI file of at most {MAX_FILE}")));
    }
    let text = fs::read_to_string(path).map_err(|error| cannot(format!("cannot be read ({error})")))?;
    parse(&Zeroizing::new(text), profile).map_err(cannot)
}

fn parse(text: &str, profile: &str) -> Result<Profile, String> {
    let section = section(text, profile)?;
    let value = |key: &str| section.get(key).copied().filter(|value| !value.is_empty());
    let needed = |key: &str| value(key).ok_or_else(|| format!("[{profile}] has no {key}; add it"));
    let kind = value("type");
    match kind {
        Some("access_key" | "sts") | None => {
            let token = match kind {
                Some("sts") => Some(needed("security_token")?),
                _ => value("security_token"),
            };
            Ok(Profile::Key(Credentials {
                access_key_id: needed("access_key_id")?.into(),
                access_key_secret: Secret::new(needed("access_key_secret")?.into()),
                security_token: token.map(|token| Secret::new(token.into())),
            }))
        }
        Some("ecs_ram_role") => Ok(Profile::Role(value("role_name").map(Into::into))),
        Some(other) => Err(format!(
            "[{profile}] type = {}: expected access_key, sts or ecs_ram_role",
            // A longer text may be a secret on the wrong line, so it is not shown.
            if other.len() <= 20 { other } else { "…" }
        )),
    }
}

/// Returns the values of a section by their names. The names are in lower case. As in the SDKs,
/// lines that begin with `;` and all text after a `#` are comments.
fn section<'a>(text: &'a str, profile: &str) -> Result<HashMap<String, &'a str>, String> {
    let mut inside = false;
    let mut found = None;
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() || line.starts_with(';') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = name.trim() == profile;
            if inside && found.is_none() {
                found = Some(HashMap::new());
            }
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            return Err(format!("line {}: expected [PROFILE] or KEY = VALUE", number + 1));
        };
        if let (true, Some(keys)) = (inside, found.as_mut()) {
            keys.insert(key.trim().to_ascii_lowercase(), value.trim());
        }
    }
    found.ok_or_else(|| {
        format!(
            "no profile [{profile}]; add it, or name another one with ALIBABA_CLOUD_PROFILE (default: {DEFAULT_PROFILE})"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
# written by hand
[default]
type = access_key          # the usual one
access_key_id = LTAI1
Access_Key_Secret = hush+/==

; another
[batch]
type=sts
access_key_id=STS.1
access_key_secret=hush2
security_token=CAIS+/=

[instance]
type = ecs_ram_role
role_name = certdist
[any]
type = ecs_ram_role
[oidc]
type = oidc_role_arn
[half]
access_key_id = LTAI1
";

    fn key(text: &str, profile: &str) -> Credentials {
        match parse(text, profile) {
            Ok(Profile::Key(credentials)) => credentials,
            _ => panic!("no key in [{profile}]"),
        }
    }

    #[test]
    fn each_profile_is_read_as_the_sdks_read_it() {
        let default = key(FILE, "default");
        assert_eq!(default.access_key_id, "LTAI1");
        assert_eq!(default.access_key_secret.expose(), "hush+/==");
        assert!(default.security_token.is_none());
        let batch = key(FILE, "batch");
        assert_eq!(batch.security_token.unwrap().expose(), "CAIS+/=");
        assert!(matches!(parse(FILE, "instance"), Ok(Profile::Role(Some(name))) if name == "certdist"));
        assert!(matches!(parse(FILE, "any"), Ok(Profile::Role(None))));
    }

    #[test]
    fn a_wrong_profile_says_what_is_expected_and_repeats_no_secret() {
        for (text, profile, expected) in [
            (FILE, "lamp", "no profile [lamp]"),
            (FILE, "oidc", "expected access_key, sts or ecs_ram_role"),
            (FILE, "half", "[half] has no access_key_secret"),
            (
                "[default]\ntype = sts\naccess_key_id = a\naccess_key_secret = hush",
                "default",
                "no security_token",
            ),
            ("[default]\naccess_key_id: hush", "default", "line 2: expected [PROFILE] or KEY = VALUE"),
            ("{\"secret\": \"hush\"}", "default", "line 1: expected"),
            ("[default]\ntype = hush-hush-hush-hush-hush", "default", "type = …"),
            ("", "default", "ALIBABA_CLOUD_PROFILE"),
        ] {
            let error = parse(text, profile).err().unwrap();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = read(Path::new("/nowhere/credentials"), "default").err().unwrap();
        assert!(error.contains("/nowhere/credentials: cannot be read"), "{error}");
    }
}
