//! A private PostgreSQL for tests: one server for each test process, which ends with it, and an empty
//! schema for each test.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// Script that starts the server, and ends it at the end of its standard input.
pub(crate) const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/test-postgres");

struct Server {
    url: String,
    /// The script ends the server when its standard input is closed, which happens even if this process
    /// is killed.
    _child: Child,
}

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let mut child = Command::new(SCRIPT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("scripts/test-postgres can be run");
        let mut url = String::new();
        let output = child.stdout.take().expect("its output is a pipe");
        BufReader::new(output).read_line(&mut url).expect("its output can be read");
        assert!(!url.is_empty(), "scripts/test-postgres has not started a server: see its message above");
        Server { url: url.trim().to_owned(), _child: child }
    })
}

/// Returns the URL of an empty schema that no other test has.
pub(crate) fn empty() -> String {
    static SCHEMAS: AtomicU64 = AtomicU64::new(0);
    let schema = format!("test{}", SCHEMAS.fetch_add(1, Ordering::Relaxed));
    run(&server().url, &format!("CREATE SCHEMA {schema}"));
    format!("{}?options=-c%20search_path%3D{schema}", server().url)
}

/// Runs statements in the database at a URL.
pub(crate) fn run(url: &str, sql: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
        let driven = tokio::spawn(connection);
        client.batch_execute(sql).await.unwrap();
        drop(client);
        driven.await.unwrap().unwrap();
    });
}
