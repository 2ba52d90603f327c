//! A console with users and tokens, and visitors who are signed in to it.

use std::{
    iter,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    process,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use certdist::{device::Secret, password};

use super::http::{self, Answer, FORM};

/// Password of the users `lead`, an operator, and `guest`, a viewer.
pub const PASSWORD: &str = "correct horse battery";
/// The token `ci`, which has the role of an operator. The configuration contains its hash.
pub const TOKEN: &str = "kAlx9f2VhR7wGmP0s3Qy8tBvZcNdEuJo1iLrT5XaYbM";
/// The token `prometheus`, which has the role of a viewer.
pub const VIEWER_TOKEN: &str = "p1lx9f2VhR7wGmP0s3Qy8tBvZcNdEuJo1iLrT5XaYbM";

/// Returns the hash of [`PASSWORD`].
pub fn password_hash() -> &'static str {
    static HASH: OnceLock<String> = OnceLock::new();
    HASH.get_or_init(|| password::hash(&Secret::new(PASSWORD.into())).expect("a hash"))
}

/// Returns a local address on which nothing listens yet. In one process, each call returns a
/// different address. The system does not assign these ports to outgoing connections.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Linux assigns ports from 32768 on to outgoing connections, so the ports here are lower. Each
    // test process starts at a different offset.
    let next = || process::id().wrapping_add(NEXT.fetch_add(1, Relaxed)) % 20_000;
    iter::repeat_with(next)
        .take(20_000)
        .map(|next| SocketAddr::from(([127, 0, 0, 1], 10_000 + next as u16)))
        .find(|address| TcpListener::bind(address).is_ok())
        .expect("a port")
}

/// Returns an `[admin]` section with two users and two tokens.
pub fn admin(listen: SocketAddr, keys: &str) -> String {
    let hash = |token: &str| {
        use sha2::Digest;
        hex::encode(sha2::Sha256::digest(token))
    };
    format!(
        "[admin]\nlisten = \"{listen}\"\n{keys}\
         [[admin.user]]\nname = \"lead\"\npassword_hash = \"{0}\"\nrole = \"operator\"\n\
         [[admin.user]]\nname = \"guest\"\npassword_hash = \"{0}\"\nrole = \"viewer\"\n\
         [[admin.token]]\nname = \"ci\"\nhash = \"sha256:{1}\"\nrole = \"operator\"\n\
         [[admin.token]]\nname = \"prometheus\"\nhash = \"sha256:{2}\"\nrole = \"viewer\"\n",
        password_hash(),
        hash(TOKEN),
        hash(VIEWER_TOKEN),
    )
}

/// A visitor with a session.
pub struct Visitor {
    pub address: SocketAddr,
    pub cookie: String,
    pub csrf: String,
}

impl Visitor {
    /// Signs in and returns the visitor.
    pub fn new(address: SocketAddr, name: &str) -> Self {
        let answer = sign_in(address, name, PASSWORD);
        assert_eq!((answer.status, answer.header("location")), (303, "/"), "{}", answer.body);
        let cookie = format!("certdist={}", answer.cookie("certdist").expect("a session"));
        let mut visitor = Self { address, cookie, csrf: String::new() };
        visitor.csrf = visitor.get("/").field("csrf");
        visitor
    }

    /// Requests a page.
    pub fn get(&self, path: &str) -> Answer {
        http::send(self.address, "GET", path, &[("Cookie", &self.cookie)], b"")
    }

    /// Sends a form with the session's CSRF token.
    pub fn post(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let mut all = vec![("csrf", self.csrf.as_str())];
        all.extend(fields);
        self.post_as_is(path, &all)
    }

    /// Sends a form without adding the CSRF token.
    pub fn post_as_is(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        http::send(self.address, "POST", path, &[("Cookie", &self.cookie), FORM], &http::form(fields))
    }

    /// Changes a device as its page offers it.
    pub fn change(&self, action: &str, device: &str) -> Answer {
        let encoded: String = device.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let seen = self.get(&format!("/device?id={encoded}")).field("seen");
        self.post(&format!("/device/{action}"), &[("id", device), ("seen", &seen)])
    }

    /// Uploads a file.
    pub fn upload(&self, name: &str, csv: &[u8], enrollment: &str) -> Answer {
        let body = http::multipart(&[("csrf", &self.csrf), ("enrollment", enrollment)], (name, csv));
        http::send(self.address, "POST", "/import", &[("Cookie", &self.cookie), http::MULTIPART], &body)
    }
}

/// Requests the sign-in form and submits it.
pub fn sign_in(address: SocketAddr, name: &str, password: &str) -> Answer {
    sign_in_from(Ipv4Addr::LOCALHOST.into(), address, name, password, None)
}

/// Requests the sign-in form and submits it, from this address of the machine and in a browser with
/// this cookie.
pub fn sign_in_from(
    source: IpAddr,
    address: SocketAddr,
    name: &str,
    password: &str,
    known: Option<&str>,
) -> Answer {
    let connect = || http::connect_from(source, address);
    let form = http::exchange(connect(), "GET", "/sign-in", &[], b"");
    let mut cookie = format!("certdist-form={}", form.cookie("certdist-form").expect("a cookie"));
    if let Some(known) = known {
        cookie = format!("{cookie}; certdist-browser={known}");
    }
    let fields = [("csrf", form.field("csrf")), ("name", name.into()), ("password", password.into())];
    let fields = fields.each_ref().map(|(name, value)| (*name, value.as_str()));
    http::exchange(connect(), "POST", "/sign-in", &[("Cookie", &cookie), FORM], &http::form(&fields))
}

/// Uses the consoles of two servers of one table alternately, as a load balancer without stickiness
/// would. The table has the device `SN-1` and the enrollment `lamp`.
pub fn use_alternately(servers: [SocketAddr; 2]) {
    let [one, other] = servers;
    // The form comes from one server, and the other one accepts it.
    let form =
        http::exchange(http::connect_from(Ipv4Addr::LOCALHOST.into(), one), "GET", "/sign-in", &[], b"");
    let cookie = format!("certdist-form={}", form.cookie("certdist-form").expect("a cookie"));
    let fields = [("csrf", form.field("csrf")), ("name", "lead".into()), ("password", PASSWORD.into())];
    let fields = fields.each_ref().map(|(name, value): &(&str, String)| (*name, value.as_str()));
    let signed = http::send(other, "POST", "/sign-in", &[("Cookie", &cookie), FORM], &http::form(&fields));
    assert_eq!(signed.status, 303, "{}", signed.body);
    let cookie = format!("certdist={}", signed.cookie("certdist").expect("a session"));
    let mut visitor = Visitor { address: one, cookie, csrf: String::new() };
    visitor.csrf = visitor.get("/").field("csrf");
    visitor.address = other;
    assert_eq!(visitor.get("/").field("csrf"), visitor.csrf);

    // A change to a device.
    let seen = visitor.get("/device?id=SN-1").field("seen");
    visitor.address = one;
    let changed = visitor.post("/device/disable", &[("id", "SN-1"), ("seen", &seen)]);
    assert_eq!(changed.status, 303, "{}", changed.body);

    // An import: previewed at one server, confirmed at the other, and only once.
    let preview = visitor.upload("new.csv", b"deviceId\nSN-2\nSN-3\n", "lamp");
    let token = preview.field("upload");
    visitor.address = other;
    let imported = visitor.post("/import/confirm", &[("upload", &token)]);
    assert_eq!(imported.status, 303, "{}", imported.body);
    assert!(imported.header("location").starts_with("/import?done="), "{}", imported.header("location"));
    visitor.address = one;
    assert_ne!(visitor.post("/import/confirm", &[("upload", &token)]).status, 303, "it was imported already");

    // The bad lines of a file are downloaded from the other server.
    let refused = visitor.upload("bad.csv", b"deviceId\nSN 4 \x01\n", "lamp");
    let (_, list) = refused.body.split_once("/import/errors.csv?list=").expect("a link");
    let list = list.split('"').next().expect("a token");
    visitor.address = other;
    let lines = visitor.get(&format!("/import/errors.csv?list={list}"));
    assert!(lines.status == 200 && lines.body.starts_with("file,line,column,reason\n"), "{}", lines.body);

    // An action on many devices: previewed at one server, confirmed twice, at each of them.
    let preview = visitor.get("/devices/bulk?action=disable&enrollment=lamp");
    let (token, expected) = (preview.field("preview"), preview.field("expected"));
    let fields =
        [("preview", &*token), ("expected", &expected), ("action", "disable"), ("enrollment", "lamp")];
    visitor.address = one;
    let begun = visitor.post("/devices/bulk", &fields);
    assert!(begun.status == 303 && begun.header("location").starts_with("/jobs?"), "{}", begun.body);
    visitor.address = other;
    let again = visitor.post("/devices/bulk", &fields);
    assert_eq!((again.status, again.header("location")), (303, begun.header("location")), "{}", again.body);

    // A user who signs out at one server is signed out at each.
    assert_eq!(visitor.post("/sign-out", &[]).status, 303);
    visitor.address = one;
    let gone = visitor.get("/");
    assert!(gone.status == 303 && gone.header("location").starts_with("/sign-in"), "{}", gone.body);
}
