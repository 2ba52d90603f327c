//! Tests of a connection to PostgreSQL over TLS, and of the messages for an operator if it cannot be
//! established.
#![cfg(feature = "simulation")]

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedKey, DnType, IsCa, KeyPair};

use crate::{
    postgres::server,
    support::{MASTER, Site, stderr},
};

/// An authority that signs the certificates of servers.
struct Authority(CertifiedKey);

impl Authority {
    fn new(name: &str) -> Self {
        let key_pair = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let cert = params.self_signed(&key_pair).expect("a certificate");
        Self(CertifiedKey { cert, key_pair })
    }

    /// Returns the certificate of a server with this name.
    fn certify(&self, name: &str) -> CertifiedKey {
        let key_pair = KeyPair::generate().expect("a key");
        let params = CertificateParams::new([name.to_owned()]).expect("a name");
        let cert = params.signed_by(&key_pair, &self.0.cert, &self.0.key_pair).expect("a certificate");
        CertifiedKey { cert, key_pair }
    }
}

/// A PostgreSQL server with TLS, and its port. The server ends when this value is dropped.
struct Encrypted {
    child: Child,
    port: u16,
}

impl Encrypted {
    /// Starts a server with this certificate, and creates the user `anna` with the password `s3cret` and
    /// a database of her own.
    fn start(site: &Site, certified: &CertifiedKey) -> Self {
        site.write("server.pem", &certified.cert.pem());
        site.write("server.key", &certified.key_pair.serialize_pem());
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let mut child = Command::new(server::SCRIPT)
            .args([site.path("server.pem"), site.path("server.key")])
            .arg(port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("scripts/test-postgres can be run");
        let mut url = String::new();
        let output = child.stdout.take().expect("its output");
        BufReader::new(output).read_line(&mut url).expect("its output can be read");
        assert!(!url.is_empty(), "scripts/test-postgres has not started a server: see its message above");
        server::run(url.trim(), "CREATE USER anna PASSWORD 's3cret'");
        server::run(url.trim(), "CREATE DATABASE anna OWNER anna");
        Self { child, port }
    }
}

impl Drop for Encrypted {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Returns the message of `certdist import` about this database, or an empty text if it succeeds.
fn import(site: &Site, url: &str) -> String {
    site.write(
        "certdist.toml",
        &format!(
            "listen = \"127.0.0.1:0\"\ndatabase = \"{url}\"\n\
             [[enrollment]]\nname = \"lamp\"\nproduct_key = \"a1lamp\"\nkind = \"derived\"\nkey = \"hex:{MASTER}\"\n"
        ),
    );
    site.write(
        "devices.csv",
        "deviceId,deviceName,deviceSecret\nSN-1,sn-1,secret00000000000000000000000001\n",
    );
    let output = site.run(&["import", "devices.csv"]);
    let said = stderr(&output);
    assert!(!said.contains("s3cret"), "{said}");
    if output.status.success() { String::new() } else { said }
}

#[test]
fn a_database_is_used_over_tls_only_if_its_certificate_is_that_of_the_host() {
    let site = Site::new();
    let [authority, other, namesake] = ["one", "other", "one"].map(Authority::new);
    site.write("root.pem", &authority.0.cert.pem());
    site.write("other.pem", &other.0.cert.pem());
    site.write("namesake.pem", &namesake.0.cert.pem());
    let database = Encrypted::start(&site, &authority.certify("localhost"));
    let port = database.port;
    let root = |file: &str| site.path(file).display().to_string().replace('/', "%2F");
    let url = |user: &str, host: &str, parameters: &str| {
        format!("postgres://{user}@{host}:{port}/anna?hostaddr=127.0.0.1&{parameters}")
    };
    let good = format!("sslmode=verify-full&sslrootcert={}", root("root.pem"));
    assert_eq!(import(&site, &url("anna:s3cret", "localhost", &good)), "");
    // The default encrypts, too, if the server can. Without TLS, this server refuses all connections.
    assert_eq!(
        import(&site, &url("anna:s3cret", "localhost", &format!("sslrootcert={}", root("root.pem")))),
        ""
    );
    let plain = import(&site, &url("anna:s3cret", "localhost", "sslmode=disable"));
    assert!(plain.contains("no encryption") && plain.contains("refused the user"), "{plain}");

    let wrong = format!("sslmode=verify-full&sslrootcert={}", root("other.pem"));
    for mode in ["sslmode=verify-full", "sslmode=require", "sslmode=prefer"] {
        let wrong = wrong.replace("sslmode=verify-full", mode);
        let said = import(&site, &url("anna:s3cret", "localhost", &wrong));
        assert!(said.contains("UnknownIssuer"), "{mode}: {said}");
    }
    let namesake = format!("sslmode=verify-full&sslrootcert={}", root("namesake.pem"));
    let said = import(&site, &url("anna:s3cret", "localhost", &namesake));
    assert!(said.contains("BadSignature"), "{said}");
    // A certificate of the right authority for another host.
    let said = import(&site, &url("anna:s3cret", "db.example", &good));
    assert!(said.contains("not valid for name"), "{said}");
    // Without `sslrootcert`, only authorities that the system trusts count.
    let said = import(&site, &url("anna:s3cret", "localhost", "sslmode=verify-full"));
    assert!(said.contains("certificate"), "{said}");

    let said = import(&site, &url("anna:wr0ng", "localhost", &good));
    assert!(said.contains("refused the user") && said.contains("`database`"), "{said}");
    assert!(!said.contains("wr0ng"), "{said}");
    let there = fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    assert!(there.contains("wr0ng"), "the password is in the file, and in no message");
}

#[test]
fn a_database_that_cannot_be_used_says_what_to_do() {
    let url = server::empty();
    let schema = url.rsplit_once("%3D").expect("a schema").1.to_owned();
    let site = Site::new();
    // A user who may use the schema, but may create nothing in it.
    server::run(
        &url,
        &format!("CREATE ROLE {schema}_reader LOGIN; GRANT USAGE ON SCHEMA {schema} TO {schema}_reader"),
    );
    let reader = url.replacen("certdist@", &format!("{schema}_reader@"), 1);
    let said = import(&site, &reader);
    assert!(said.contains("may not create tables") && said.contains("GRANT CREATE ON SCHEMA"), "{said}");
    // Tables of another program.
    server::run(&url, &format!("CREATE TABLE {schema}.orders (number int8)"));
    let said = import(&site, &url);
    assert!(said.contains("tables, but not those of certdist"), "{said}");
    // A database that does not exist.
    let said = import(&site, &url.replace("/postgres?", "/nothing?"));
    assert!(said.contains("no such database") && said.contains("createdb"), "{said}");
}
