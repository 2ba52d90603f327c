//! Tests of the health checks that need a running server.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use tokio::runtime::Handle;

use super::*;
use crate::{
    provision::Provisioner,
    psk::{Enrollments, Key, Kind, Reissue},
    registrar::Registrar,
    resource::Service,
    server::Limits,
    server::{Server, Services},
    store::{claim::Owner, sqlite::Sqlite},
    testing::cloud::Cloud,
};

fn server(folder: &tempfile::TempDir) -> Server {
    let store = Arc::new(Sqlite::open(&folder.path().join("certdist.db")).unwrap());
    let (config, cloud) = (crate::registrar::Config::default(), Arc::new(Cloud::default()));
    let registrar =
        Registrar::new(config, Owner::new("test").unwrap(), store.clone(), cloud, Handle::current());
    let provisioner = Provisioner::new(store.clone(), Targets::only(registrar), Duration::from_secs(5));
    let kind = Kind::Derived(Key::from_hex("000102030405060708090a0b0c0d0e0f").unwrap());
    let enrollment = Enrollment {
        name: "lamp".into(),
        product_key: "a1".into(),
        kind,
        reissue: Reissue::Always,
        next: None,
        guards: Default::default(),
    };
    let services = Services {
        enrollments: Arc::new(Enrollments::new([enrollment])),
        service: Arc::new(Service::new(Instant::now(), provisioner, Default::default())),
        store,
    };
    let limits = Limits { workers: 2, ..Limits::default() };
    Server::start(&["127.0.0.1:0".parse().unwrap()], &limits, &services, &Handle::current()).unwrap()
}

async fn text(response: Response) -> (StatusCode, String) {
    let status = response.status();
    let bytes = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

#[tokio::test]
async fn a_worker_that_makes_no_progress_is_reported_and_an_idle_one_is_not() {
    let folder = tempfile::TempDir::new().unwrap();
    let server = server(&folder);
    let pulses = server.pulses();
    // Idle workers sleep; the check wakes them.
    for _ in 0..3 {
        assert_eq!(text(health::live(&pulses, Detail::Reasons).await).await, (StatusCode::OK, "ok\n".into()));
    }
    tokio::task::spawn_blocking(|| server.stop()).await.unwrap();
    let stranger = text(health::live(&pulses, Detail::StateOnly).await).await;
    assert_eq!(stranger.0, StatusCode::SERVICE_UNAVAILABLE);
    assert!(stranger.1.starts_with("not ok\n") && !stranger.1.contains("worker"), "{}", stranger.1);
    let (status, text) = text(health::live(&pulses, Detail::Reasons).await).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(text.contains("worker 0 has made no progress") && text.contains("worker 1"), "{text}");
}
