//! `[admin]`: the address of the operator's port, and its users and tokens.

use std::{fs, net::IpAddr, path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::{
    Admin, Secrets,
    document::{Problems, Table},
    file,
};
use crate::{
    operators::{Token, User},
    password,
};

/// Checks the section. Its relative paths start from `folder`. Returns `None` if there is an
/// error.
pub(super) fn read(
    mut table: Table<file::Admin>,
    (folder, secrets): (&Path, Secrets),
    problems: &mut Problems,
) -> Option<Admin> {
    let file::Admin { user, token, hosts, .. } = &mut table.values;
    let (user, token, hosts) = (std::mem::take(user), std::mem::take(token), std::mem::take(hosts));
    let tls = read_listen(&table.values, folder, secrets);
    let tls = table.checked(problems, &["listen", "tls_certificate", "tls_key", "exposed"], tls);
    let hosts = hosts.iter().map(|host| read_host(host)).collect::<Result<Vec<_>>>();
    let hosts = table.checked(problems, &["hosts"], hosts);
    let users = table.checked(problems, &["user"], read_users(user));
    let tokens = token.into_iter().map(read_token).collect::<Result<Vec<_>>>();
    let tokens = table.checked(problems, &["token"], tokens);
    let file::Admin { listen, require_token, .. } = table.values;
    if require_token && tokens.as_ref().is_some_and(Vec::is_empty) {
        let expected = "require_token = true: expected at least one [[admin.token]]";
        table.wrong(problems, &["require_token"], expected);
    }
    Some(Admin { listen, hosts: hosts?, tls: tls?, users: users?, tokens: tokens?, require_token })
}

/// Checks the address, and reads the certificate if there is one.
fn read_listen(
    section: &file::Admin,
    folder: &Path,
    secrets: Secrets,
) -> Result<Option<Arc<rustls::ServerConfig>>> {
    let file::Admin { listen, exposed, tls_certificate, tls_key, .. } = section;
    let tls = match (tls_certificate, tls_key) {
        (None, None) => None,
        // The files may belong to another user, so a command that does not need them does not read
        // them.
        (Some(_), Some(_)) if secrets == Secrets::IfThere => return Ok(None),
        (Some(certificate), Some(key)) => Some(read_tls(&folder.join(certificate), &folder.join(key))?),
        _ => anyhow::bail!("expected both tls_certificate and tls_key, or neither"),
    };
    ensure!(
        *exposed || tls.is_some() || listen.ip().is_loopback(),
        "listen = \"{listen}\": passwords and sessions would cross the network in clear text; expected \
         a loopback address, or tls_certificate and tls_key, or exposed = true behind a proxy with TLS"
    );
    Ok(tls)
}

fn read_host(host: &str) -> Result<String> {
    normal_host(host).with_context(|| {
        format!(
            "hosts: \"{host}\": expected a name or an address without scheme and port, such as \
             \"console.example.com\""
        )
    })
}

/// Returns a host in the form in which hosts are compared: a name in lower case without its final
/// dot, or an address without brackets. Returns `None` if the text is neither a name (RFC 1123
/// §2.1, and underscores, which are used in practice) nor an address.
pub fn normal_host(host: &str) -> Option<String> {
    let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = literal.parse::<IpAddr>() {
        return Some(address.to_canonical().to_string());
    }
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let is_legal = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_');
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(is_legal);
    (name.len() <= 253 && name.split('.').all(is_label)).then_some(name)
}

fn read_users(users: Vec<file::User>) -> Result<Vec<User>> {
    let users = users.into_iter().map(read_user).collect::<Result<Vec<_>>>()?;
    for (index, user) in users.iter().enumerate() {
        let is_first = users.iter().position(|other| other.name == user.name) == Some(index);
        ensure!(
            is_first,
            "[[admin.user]] \"{}\" is there twice; expected a different name for each",
            user.name
        );
    }
    Ok(users)
}

fn read_user(user: file::User) -> Result<User> {
    let file::User { name, password_hash, role } = user;
    ensure!(
        !name.is_empty() && name.len() <= 64,
        "[[admin.user]] name has {} bytes, expected 1 to 64",
        name.len()
    );
    // The text may be the password itself, so the error does not repeat it.
    password::check_hash(&password_hash)
        .map_err(|expected| anyhow::anyhow!("[[admin.user]] \"{name}\": password_hash: {expected}"))?;
    Ok(User { name, password_hash, role })
}

fn read_token(token: file::Token) -> Result<Token> {
    let file::Token { name, hash, role } = token;
    let bytes = hash.strip_prefix("sha256:").and_then(|digits| hex::decode(digits).ok());
    let hash = bytes.and_then(|bytes| bytes.try_into().ok()).with_context(|| {
        format!(
            "[[admin.token]] \"{name}\": hash: expected \"sha256:…\", as `certdist admin new-token` prints it"
        )
    })?;
    Ok(Token { name, hash, role })
}

fn read_tls(certificate: &Path, key: &Path) -> Result<Arc<rustls::ServerConfig>> {
    let of = |what: &str, path: &Path| format!("{what} = \"{}\"", path.display());
    let chain = fs::read(certificate)
        .map_err(anyhow::Error::from)
        .and_then(|pem| Ok(CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>()?))
        .with_context(|| of("tls_certificate", certificate))?;
    ensure!(!chain.is_empty(), "{}: expected certificates in PEM", of("tls_certificate", certificate));
    let secret = fs::read(key).map(zeroize::Zeroizing::new).with_context(|| of("tls_key", key))?;
    let secret = PrivateKeyDer::from_pem_slice(&secret)
        .with_context(|| format!("{}: expected a private key in PEM", of("tls_key", key)))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .with_context(|| format!("{} does not match tls_key", of("tls_certificate", certificate)))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
