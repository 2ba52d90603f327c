//! A server with the resources that ETSI's test descriptions require. It consists only of
//! certdist's CoAP endpoint and a UDP socket.

use std::{
    collections::HashMap,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use certdist::coap::{
    Code, Config, Endpoint, ExchangeId, Method, Outbox, Request, Response,
    content_format::{LINK, TEXT},
    link::{self, Link},
};

/// Content format of `application/xml`.
const XML: u16 = 41;
const ETAG: u16 = 4;
const LOCATION_PATH: u16 = 8;
const LOCATION_QUERY: u16 = 20;

/// Time that `/separate` takes to answer.
const SLOW: Duration = Duration::from_millis(1300);

pub const LINKS: [Link<'_>; 10] = [
    Link { target: "/test", attributes: &[("rt", "Type1 Type2"), ("if", "If1"), ("title", "Test")] },
    Link { target: "/validate", attributes: &[("rt", "Type2 Type3"), ("if", "If2")] },
    Link { target: "/query", attributes: &[("rt", "Type1 Type3"), ("if", "foo")] },
    Link { target: "/large", attributes: &[("rt", ""), ("sz", "1700")] },
    Link { target: "/separate", attributes: &[] },
    Link { target: "/link1", attributes: &[] },
    Link { target: "/link2", attributes: &[] },
    Link { target: "/link3", attributes: &[] },
    Link { target: "/path", attributes: &[("ct", "40")] },
    Link { target: "/multi-format", attributes: &[("ct", "0 41")] },
];
const SUB: [Link<'_>; 2] =
    [Link { target: "/path/sub1", attributes: &[] }, Link { target: "/path/sub2", attributes: &[] }];

/// A server that ends with its test.
pub struct Plugtest {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Plugtest {
    pub fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(5))).expect("a time-out");
        let (address, stop) = (socket.local_addr().expect("an address"), Arc::<AtomicBool>::default());
        let stopped = stop.clone();
        let thread = thread::spawn(move || run(&socket, &stopped));
        Self { address, stop, thread: Some(thread) }
    }
}

impl Drop for Plugtest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(thread::JoinHandle::join));
    }
}

struct Out<'s>(&'s UdpSocket);

impl Outbox<SocketAddr> for Out<'_> {
    fn push(&mut self, peer: SocketAddr, message: &[u8]) -> bool {
        self.0.send_to(message, peer).expect("loopback takes it");
        true
    }
}

fn run(socket: &UdpSocket, stop: &AtomicBool) {
    let config = Config { max_request_body: 4096, ..Config::default() };
    let mut endpoint = Endpoint::new(config, Instant::now(), [9; 32]);
    let (mut resources, mut slow) =
        (Resources::new(), Vec::<(Instant, ExchangeId<SocketAddr>, Response)>::new());
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        let received = socket.recv_from(&mut buffer);
        let (now, out) = (Instant::now(), &mut Out(socket));
        if let Ok((length, peer)) = received
            && let Some(request) = endpoint.receive(now, peer, &buffer[..length], out)
        {
            let response = resources.answer(&request);
            if request.path == ["separate"] {
                endpoint.defer(now, request.exchange);
                slow.push((now + SLOW, request.exchange, response));
            } else {
                endpoint.respond(now, request.exchange, &response, out);
            }
        }
        endpoint.handle_timeout(now, out);
        slow.retain(|(at, exchange, response)| {
            let due = *at <= now;
            if due {
                endpoint.respond(now, *exchange, response, out);
            }
            !due
        });
    }
}

/// The state of the resources, which clients can change.
struct Resources {
    validate: Vec<u8>,
    version: u8,
    large_update: Vec<u8>,
    created: HashMap<String, Vec<u8>>,
}

/// Returns 1,700 bytes of text in 34 lines.
pub fn large() -> Vec<u8> {
    (0..34)
        .flat_map(|line| format!("line {line:02} of thirty-four, each of fifty bytes....\n").into_bytes())
        .collect()
}

fn text(content: impl Into<Vec<u8>>) -> Response {
    Response::content(TEXT, content.into())
}

impl Resources {
    fn new() -> Self {
        Self { validate: b"first".to_vec(), version: 1, large_update: large(), created: HashMap::new() }
    }

    fn answer(&mut self, request: &Request<SocketAddr>) -> Response {
        use Method::{Delete, Get, Post, Put};
        let path: Vec<&str> = request.path.iter().map(String::as_str).collect();
        match (path.as_slice(), request.method) {
            ([".well-known", "core"], Get) => {
                Response::content(LINK, link::format(&LINKS, &request.query).into_bytes())
            }
            (["path"], Get) => Response::content(LINK, link::format(&SUB, &[]).into_bytes()),
            (["path", "sub1"], Get) => text("/path/sub1"),
            (["test" | "separate"], Get) => text("content of the resource"),
            (["test"], Put) => Response::empty(Code::Changed),
            (["test"], Delete) => Response::empty(Code::Deleted),
            (["test"], Post) => ["location1", "location2", "location3"]
                .into_iter()
                .fold(Response::empty(Code::Created), |response, segment| {
                    response.with_option(LOCATION_PATH, segment)
                }),
            (["location-query"], Post) => Response::empty(Code::Created)
                .with_option(LOCATION_QUERY, "first=1")
                .with_option(LOCATION_QUERY, "second=2"),
            (["seg1", "seg2", "seg3"], Get) => text("three segments"),
            (["query"], Get) => text(request.query.join("&")),
            (["multi-format"], Get) => match request.accept {
                None | Some(TEXT) => text("text"),
                Some(XML) => Response::content(XML, b"<text/>".to_vec()),
                Some(_) => Response::problem(Code::NotAcceptable, "text or xml"),
            },
            (["validate"], Get) if request.etags.contains(&vec![self.version]) => {
                Response::empty(Code::Valid).with_option(ETAG, [self.version])
            }
            (["validate"], Get) => text(self.validate.clone()).with_option(ETAG, [self.version]),
            (["validate"], Put)
                if !request.if_match.is_empty() && !request.if_match.contains(&vec![self.version]) =>
            {
                Response::empty(Code::PreconditionFailed)
            }
            (["validate"], Put) => {
                self.validate.clone_from(&request.payload);
                self.version += 1;
                Response::empty(Code::Changed)
            }
            (["create1"], Put) if request.if_none_match && self.created.contains_key("create1") => {
                Response::empty(Code::PreconditionFailed)
            }
            (["create1"], Put) => self.create("create1", &request.payload),
            (["large"], Get) => text(large()),
            (["large-update"], Get) => text(self.large_update.clone()),
            (["large-update"], Put) => {
                self.large_update.clone_from(&request.payload);
                Response::empty(Code::Changed)
            }
            (["large-create"], Post) => self
                .create("1", &request.payload)
                .with_option(LOCATION_PATH, "large-create")
                .with_option(LOCATION_PATH, "1"),
            (["large-create", name], Get) if self.created.contains_key(*name) => {
                text(self.created[*name].clone())
            }
            (["large-post"], Post) => {
                let mut back = request.payload.clone();
                back.reverse();
                Response { code: Code::Changed, ..text(back) }
            }
            _ => Response::problem(Code::NotFound, "no such resource"),
        }
    }

    fn create(&mut self, name: &str, content: &[u8]) -> Response {
        self.created.insert(name.to_owned(), content.to_vec());
        Response::empty(Code::Created)
    }
}
