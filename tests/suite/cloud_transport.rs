//! Tests of the connection to IoT Platform: signature version 3, temporary credentials, TLS,
//! proxies and time-outs. Each test uses a peer on loopback.
#![cfg(feature = "simulation")]

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use certdist::{
    device::Secret,
    iot_platform::{
        ApiError, ErrorClass, IotPlatform,
        client::{Client, ClientConfig, Credentials, SignatureVersion, Source, Timeouts},
        credentials::Role,
        simulator::{
            Action, DEFAULT_ACCESS_KEY_ID, DEFAULT_ACCESS_KEY_SECRET, Fault, Simulator, SimulatorConfig,
        },
    },
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

const PRODUCT: &str = "a1BwAGVxyz1";
/// A host name that does not resolve, so that only a proxy can reach it.
const CLOUD: &str = "iot.cn-shanghai.test.invalid";
/// Environment variable with the endpoint, for a child process that makes one call for a test.
const ENDPOINT: &str = "CERTDIST_TEST_ENDPOINT";

async fn simulator() -> Simulator {
    Simulator::start(SimulatorConfig::default()).await.unwrap()
}

fn credentials() -> Credentials {
    Credentials {
        access_key_id: DEFAULT_ACCESS_KEY_ID.into(),
        access_key_secret: Secret::new(DEFAULT_ACCESS_KEY_SECRET.into()),
        security_token: None,
    }
}

fn config(endpoint: impl Into<String>) -> ClientConfig {
    ClientConfig::new(endpoint, "cn-shanghai", credentials())
}

fn version_3(simulator: &Simulator) -> ClientConfig {
    ClientConfig { signature: SignatureVersion::V3, ..config(simulator.endpoint()) }
}

async fn register(config: ClientConfig) -> Result<(), ApiError> {
    Client::new(config).unwrap().register_device(PRODUCT, "SN01").await.map(drop)
}

#[tokio::test]
async fn version_3_is_admitted_by_the_gateway_with_token_instance_and_reserved_characters() {
    let simulator = simulator().await;
    let temporary = Credentials { security_token: Some(Secret::new("CAIS+/=".into())), ..credentials() };
    let with_all = ClientConfig {
        instance_id: "iot-060a02m5".into(),
        credentials: temporary.into(),
        ..version_3(&simulator)
    };
    for (config, name) in [(version_3(&simulator), "SN01"), (with_all, "AA:BB:CC@dd.ee-ff_1")] {
        let client = Client::new(config).unwrap();
        let made = client.register_device(PRODUCT, name).await.unwrap();
        assert_eq!(made.certificate.device_name, name);
        let found = client.query_device_detail(PRODUCT, name).await.unwrap();
        assert_eq!(found.certificate, made.certificate);
    }
    assert_eq!(simulator.stats().refused, 0);
}

#[tokio::test]
async fn version_3_with_a_wrong_secret_is_refused_and_the_secret_is_not_repeated() {
    let simulator = simulator().await;
    let wrong = Credentials {
        access_key_secret: Secret::new("wrong-hush".into()),
        security_token: Some(Secret::new("token-hush".into())),
        ..credentials()
    };
    let config = ClientConfig { credentials: wrong.into(), ..version_3(&simulator) };
    let error = register(config).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Operator, "SignatureDoesNotMatch"));
    assert!(!error.message.contains("hush"), "{error}");
}

#[tokio::test]
async fn version_3_takes_the_clouds_clock_and_another_nonce_as_version_1_does() {
    let simulator = simulator().await;
    for wrong in [-86_400, 86_400] {
        let client = Client::new(ClientConfig { clock_offset: wrong, ..version_3(&simulator) }).unwrap();
        let (refused, name) = (simulator.stats().refused, format!("SN{wrong}"));
        client.register_device(PRODUCT, &name).await.unwrap();
        client.query_device_detail(PRODUCT, &name).await.unwrap();
        assert_eq!(simulator.stats().refused, refused + 1, "corrected once, for good");
    }
    simulator.script(Action::RegisterDevice, Fault::gateway(400, "SignatureNonceUsed"));
    register(version_3(&simulator)).await.unwrap();
}

/// Starts a metadata service that returns the simulator's access key. Returns its URL and the
/// number of credential requests.
async fn metadata(tasks: &mut JoinSet<()>) -> (String, Arc<Mutex<u32>>) {
    let asked = Arc::new(Mutex::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let count = asked.clone();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let head = head(&mut stream).await;
            let body = if head.starts_with("PUT") {
                "a-token".to_owned()
            } else {
                *count.lock().unwrap() += 1;
                let expires = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() + 21_600);
                serde_json::json!({
                    "Code": "Success", "AccessKeyId": DEFAULT_ACCESS_KEY_ID,
                    "AccessKeySecret": DEFAULT_ACCESS_KEY_SECRET, "SecurityToken": "CAIS",
                    "Expiration": expires.unwrap().to_string()
                })
                .to_string()
            };
            let answer = format!(
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (endpoint, asked)
}

/// Reads the head of a request, including the empty line.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn a_token_that_expired_early_is_read_again_and_the_call_repeated_once() {
    for signature in [SignatureVersion::V1, SignatureVersion::V3] {
        let simulator = simulator().await;
        let mut tasks = JoinSet::new();
        let (metadata_endpoint, asked) = metadata(&mut tasks).await;
        let role = Role { name: Some("certdist".into()), metadata_endpoint, token_required: true };
        let config =
            ClientConfig { credentials: Source::Role(role), signature, ..config(simulator.endpoint()) };
        let client = Client::new(config).unwrap();
        client.register_device(PRODUCT, "SN01").await.unwrap();
        client.register_device(PRODUCT, "SN02").await.unwrap();
        assert_eq!(*asked.lock().unwrap(), 1);

        let expired = Fault::gateway(403, "InvalidSecurityToken.Expired");
        simulator.script(Action::RegisterDevice, expired.clone());
        client.register_device(PRODUCT, "SN03").await.unwrap();
        assert_eq!(*asked.lock().unwrap(), 2);

        simulator.script(Action::RegisterDevice, expired.clone());
        simulator.script(Action::RegisterDevice, expired);
        let error = client.register_device(PRODUCT, "SN04").await.unwrap_err();
        assert_eq!(error.code, "InvalidSecurityToken.Expired");
        assert_eq!((error.class, *asked.lock().unwrap()), (ErrorClass::Operator, 3));
    }
}

/// A CA that the test creates.
struct Authority {
    certificate: rcgen::Certificate,
    key: KeyPair,
    folder: TempDir,
}

impl Authority {
    fn new() -> Self {
        Self::named("factory CA")
    }

    fn named(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let authority = Self { certificate, key, folder: tempfile::tempdir().unwrap() };
        fs::write(authority.ca_file(), authority.certificate.pem()).unwrap();
        authority
    }

    fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Serves TLS in front of the simulator, with a certificate for `name`.
    async fn serve(
        &self,
        name: &str,
        years: std::ops::Range<i32>,
        upstream: SocketAddr,
        tasks: &mut JoinSet<()>,
    ) -> SocketAddr {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(years.start, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.end, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.certificate, &self.key).unwrap();
        let chain = vec![CertificateDer::from_pem_slice(certificate.pem().as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    // If the client does not trust the certificate, it closes the connection, and
                    // there is nothing to forward.
                    if let Ok(mut stream) = acceptor.accept(stream).await {
                        let mut upstream = TcpStream::connect(upstream).await.unwrap();
                        let _ = copy_bidirectional(&mut stream, &mut upstream).await;
                    }
                });
            }
        });
        address
    }
}

const VALID: std::ops::Range<i32> = 2020..2200;

#[tokio::test]
async fn an_own_ca_is_trusted_when_the_configuration_names_it() {
    let (simulator, authority, mut tasks) = (simulator().await, Authority::new(), JoinSet::new());
    let address = authority.serve("localhost", VALID, simulator.addr(), &mut tasks).await;
    for signature in [SignatureVersion::V1, SignatureVersion::V3] {
        let endpoint = format!("https://localhost:{}", address.port());
        let config = ClientConfig { ca_file: Some(authority.ca_file()), signature, ..config(endpoint) };
        let client = Client::new(config).unwrap();
        client.register_device(PRODUCT, &format!("{signature:?}-SN01")).await.unwrap();
    }
    assert_eq!(simulator.stats().devices, 2);
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_says_what_an_operator_can_do() {
    let (simulator, authority, mut tasks) = (simulator().await, Authority::new(), JoinSet::new());
    let (stranger, made_anew) = (Authority::named("another CA"), Authority::new());
    for (trusted, name, years, host, advice) in [
        (
            &stranger,
            "localhost",
            VALID,
            "localhost",
            "from a CA that this machine does not trust: set ca_file",
        ),
        (&made_anew, "localhost", VALID, "localhost", "set ca_file"),
        (&authority, "localhost", 2020..2021, "localhost", "has expired"),
        (&authority, "localhost", 2190..2200, "localhost", "is not valid yet"),
        (&authority, "iot.cn-shanghai.aliyuncs.com", VALID, "localhost", "is for another name"),
    ] {
        let address = authority.serve(name, years, simulator.addr(), &mut tasks).await;
        let endpoint = format!("https://{host}:{}", address.port());
        let config = ClientConfig { ca_file: Some(trusted.ca_file()), ..config(endpoint) };
        let error = register(config).await.unwrap_err();
        assert_eq!((error.class, error.code.as_str()), (ErrorClass::Operator, "Certificate"), "{error}");
        assert!(error.message.contains(advice) && error.message.contains(host), "{error}");
    }
    assert_eq!(simulator.stats().devices, 0);
}

#[test]
fn a_ca_file_that_is_none_is_refused_before_any_call() {
    let config = ClientConfig { ca_file: Some("/nowhere/ca.pem".into()), ..config("https://localhost:1") };
    let error = Client::new(config).unwrap_err().to_string();
    assert!(error.contains("ca_file /nowhere/ca.pem cannot be read"), "{error}");
}

/// Starts a proxy that records all requests. It forwards them to `http` or, after CONNECT, to
/// `https`, regardless of the requested host.
async fn proxy(
    http: SocketAddr,
    https: SocketAddr,
    tasks: &mut JoinSet<()>,
) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let log = asked.clone();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let log = log.clone();
            connections.spawn(async move {
                let head = head(&mut stream).await;
                let line = head.lines().next().unwrap_or_default().to_owned();
                log.lock().unwrap().push(line.clone());
                let mut upstream;
                if line.starts_with("CONNECT ") {
                    upstream = TcpStream::connect(https).await.unwrap();
                    stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await.unwrap();
                } else {
                    upstream = TcpStream::connect(http).await.unwrap();
                    // RFC 9112 §3.2.1: a request to the origin server has only the path.
                    let head = head.replacen(&format!("http://{CLOUD}"), "", 1);
                    upstream.write_all(head.as_bytes()).await.unwrap();
                }
                let _ = copy_bidirectional(&mut stream, &mut upstream).await;
            });
        }
    });
    (address, asked)
}

/// Runs the test `name` in a child process with these variables, as if the operator had set them.
/// The test process itself must not change its own environment.
async fn in_a_process(name: &str, variables: &[(&str, &str)]) {
    let (_, module) = module_path!().split_once("::").unwrap();
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", &format!("{module}::{name}"), "--nocapture"]);
    for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
        command.env_remove(proxy).env_remove(proxy.to_lowercase());
    }
    command.env_remove("REQUEST_METHOD").env_remove("SSL_CERT_FILE").envs(variables.iter().copied());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{variables:?}: {text}");
}

/// The part of a test that runs in the child process: one call, configured by the environment.
async fn call_as_the_environment_says() {
    let ca_file = env::var_os("CERTDIST_TEST_CA").map(PathBuf::from);
    let mut config = ClientConfig { ca_file, ..config(env::var(ENDPOINT).unwrap()) };
    if let Ok(metadata_endpoint) = env::var("CERTDIST_TEST_METADATA") {
        config.credentials = Source::Role(Role { name: None, metadata_endpoint, token_required: false });
    }
    let expected = env::var("CERTDIST_TEST_EXPECTED").unwrap_or_default();
    match register(config).await {
        Ok(()) => assert_eq!(expected, ""),
        Err(error) => assert!(!expected.is_empty() && error.to_string().contains(&expected), "{error}"),
    }
}

#[tokio::test]
async fn the_proxy_variables_are_honoured() {
    if env::var_os(ENDPOINT).is_some() {
        return call_as_the_environment_says().await;
    }
    let (simulator, authority, mut tasks) = (simulator().await, Authority::new(), JoinSet::new());
    let tls = authority.serve(CLOUD, VALID, simulator.addr(), &mut tasks).await;
    let (address, asked) = proxy(simulator.addr(), tls, &mut tasks).await;
    let (proxy, ca_file) = (format!("http://{address}"), authority.ca_file());
    let (plain, secure) = (format!("http://{CLOUD}"), format!("https://{CLOUD}"));
    let (forwarded, tunnelled) =
        (format!("POST http://{CLOUD}/ HTTP/1.1"), format!("CONNECT {CLOUD}:443 HTTP/1.1"));
    for (endpoint, variables, line) in [
        (&plain, [("HTTP_PROXY", proxy.as_str())].as_slice(), Some(&forwarded)),
        (&plain, &[("http_proxy", &proxy)], Some(&forwarded)),
        (&plain, &[("ALL_PROXY", &proxy)], Some(&forwarded)),
        (&secure, &[("HTTPS_PROXY", &proxy)], Some(&tunnelled)),
        (&secure, &[("https_proxy", &proxy)], Some(&tunnelled)),
        (&secure, &[("all_proxy", &proxy)], Some(&tunnelled)),
        (&secure, &[("HTTP_PROXY", &proxy)], None),
        (&secure, &[("HTTPS_PROXY", &proxy), ("NO_PROXY", "other.invalid,.test.invalid")], None),
        (&secure, &[("HTTPS_PROXY", &proxy), ("no_proxy", CLOUD)], None),
    ] {
        // If the proxy is not used, the name does not resolve and the connection fails.
        let expected = if line.is_some() { "AlreadyExistedDeviceName" } else { "Connection" };
        let expected = if simulator.stats().devices == 0 && line.is_some() { "" } else { expected };
        let mut variables = variables.to_vec();
        variables.extend([
            (ENDPOINT, endpoint.as_str()),
            ("CERTDIST_TEST_CA", ca_file.to_str().unwrap()),
            ("CERTDIST_TEST_EXPECTED", expected),
        ]);
        in_a_process("the_proxy_variables_are_honoured", &variables).await;
        let asked = std::mem::take(&mut *asked.lock().unwrap());
        assert_eq!(asked.first(), line, "{variables:?}");
    }
}

#[tokio::test]
async fn the_metadata_service_is_never_asked_through_a_proxy() {
    if env::var_os(ENDPOINT).is_some() {
        return call_as_the_environment_says().await;
    }
    let (simulator, mut tasks) = (simulator().await, JoinSet::new());
    let (address, asked) = proxy(simulator.addr(), simulator.addr(), &mut tasks).await;
    let proxy = format!("http://{address}");
    // Nothing listens on this port, but a request through the proxy would be answered.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let variables = [
        (ENDPOINT, format!("http://{CLOUD}")),
        ("HTTP_PROXY", proxy.clone()),
        ("ALL_PROXY", proxy),
        ("CERTDIST_TEST_METADATA", format!("http://{free}")),
        ("CERTDIST_TEST_EXPECTED", "no answer from the metadata service".into()),
    ];
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    in_a_process("the_metadata_service_is_never_asked_through_a_proxy", &variables).await;
    assert!(asked.lock().unwrap().is_empty(), "{asked:?}");
}

#[tokio::test]
async fn the_roots_of_ssl_cert_file_are_trusted() {
    if env::var_os(ENDPOINT).is_some() {
        return call_as_the_environment_says().await;
    }
    let (simulator, authority, mut tasks) = (simulator().await, Authority::new(), JoinSet::new());
    let address = authority.serve("localhost", VALID, simulator.addr(), &mut tasks).await;
    let endpoint = format!("https://localhost:{}", address.port());
    let run = async |roots: &Path, expected: &str| {
        let variables = [
            (ENDPOINT, endpoint.as_str()),
            ("SSL_CERT_FILE", roots.to_str().unwrap()),
            ("CERTDIST_TEST_EXPECTED", expected),
        ];
        in_a_process("the_roots_of_ssl_cert_file_are_trusted", &variables).await;
    };
    run(&authority.ca_file(), "").await;
    run(&Authority::new().ca_file(), "from a CA that this machine does not trust").await;
}

/// Starts a server that accepts one connection, sends `answer` after the first byte that it
/// receives, and then sends nothing more.
async fn stalling(answer: &'static str, tasks: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_u8().await.unwrap();
        stream.write_all(answer.as_bytes()).await.unwrap();
        // The loop ends when the client closes the connection.
        while stream.read_u8().await.is_ok() {}
    });
    address
}

#[tokio::test]
async fn each_stage_that_stalls_ends_at_its_own_time_out() {
    let [short, long] = [200, 20_000].map(Duration::from_millis);
    let half = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"Success\":";
    let authority = Authority::new();
    for (scheme, answer, timeouts, class, code, what) in [
        // The TLS handshake stalls, because the client's hello is not answered.
        (
            "https",
            "",
            Timeouts { connect: short, first_byte: long, whole: long },
            ErrorClass::TryAgain,
            "NoConnection",
            "no connection within 0.2 s (connect_timeout)",
        ),
        (
            "http",
            "",
            Timeouts { connect: long, first_byte: short, whole: long },
            ErrorClass::TimedOut,
            "Timeout",
            "no answer within 0.2 s (first_byte_timeout)",
        ),
        (
            "http",
            half,
            Timeouts { connect: long, first_byte: long, whole: short },
            ErrorClass::TimedOut,
            "Timeout",
            "no complete answer within 0.2 s (timeout)",
        ),
    ] {
        let mut tasks = JoinSet::new();
        let endpoint = format!("{scheme}://{}", stalling(answer, &mut tasks).await);
        let started = Instant::now();
        let config = ClientConfig { timeouts, ca_file: Some(authority.ca_file()), ..config(endpoint) };
        let error = register(config).await.unwrap_err();
        assert_eq!((error.class, error.code.as_str(), error.message.as_str()), (class, code, what));
        assert!((short..short * 10).contains(&started.elapsed()), "{:?}", started.elapsed());
    }
    let Timeouts { connect, first_byte, whole } = Timeouts::default();
    assert!(connect < first_byte && first_byte < whole && whole <= Duration::from_secs(10));
}
