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
