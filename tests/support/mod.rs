//! The `certdist` binary for tests: a folder with a configuration, and processes that tests start,
//! query and end.

// Each test binary uses only a part of this module, so the rest is dead code in that binary.
#![allow(dead_code)]

pub mod console;
pub mod document;
pub mod http;
pub mod network;
pub mod plugtest;
#[cfg(feature = "simulation")]
pub mod sign_in;
pub mod webdriver;

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::{SocketAddr, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// Waits until a condition holds, for at most a minute.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until a text is as expected, for at most 20 s, and returns it.
pub fn wait_for(text: impl Fn() -> String, is_there: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let text = text();
        if is_there(&text) {
            return text;
        }
        assert!(Instant::now() < deadline, "{text}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The certdist binary.
pub const CERTDIST: &str = env!("CARGO_BIN_EXE_certdist");
/// The master key of the enrollment `lamp`.
pub const MASTER: &str = "000102030405060708090a0b0c0d0e0f";
/// The key of the enrollment `plug`, as text.
pub const SHARED_KEY: &str = "sixteen-bytes-ok";
/// The PSK identity of the enrollment `plug`.
pub const SHARED_IDENTITY: &str = "plug-batch";

/// A process that ends with its test, even if the test fails.
pub struct Process {
    child: Child,
    /// The address that the process announced after `listening on`.
    pub address: SocketAddr,
    announced: mpsc::Receiver<SocketAddr>,
}

impl Process {
    /// Starts `certdist` and waits until it listens.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("certdist starts");
        let stdout = child.stdout.take().expect("its output");
        let (announce, announced) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(url) = line.strip_prefix("listening on ") {
                    // Words may follow, such as the instance of an MQTT address.
                    let url = url.split(' ').next().unwrap_or_default();
                    let address = url.split("//").nth(1).and_then(|address| address.parse().ok());
                    let _ = announce.send(address.expect("an address"));
                }
            }
        });
        let address = announced.recv_timeout(Duration::from_secs(20));
        let Ok(address) = address else {
            let _ = child.kill();
            panic!("no announcement within 20 s");
        };
        Self { child, address, announced }
    }

    /// Returns the next announced address of a process that listens on several addresses.
    pub fn next_address(&self) -> SocketAddr {
        self.announced.recv_timeout(Duration::from_secs(20)).expect("another announcement within 20 s")
    }

    /// Returns the process ID.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name, such as TERM.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.id().to_string()).status();
        assert!(status.expect("kill").success());
    }

    /// Sends SIGTERM and returns the exit code.
    pub fn stop(self) -> Option<i32> {
        self.signal("TERM");
        self.ended()
    }

    /// Waits until the process ends, and returns the exit code.
    pub fn ended(mut self) -> Option<i32> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("its status") {
                return status.code();
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!("still running after 30 s");
    }

    /// Ends the process with SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("its status");
    }

    /// Returns whether the process is running.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("its status").is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder with a configuration of two enrollments: the derived enrollment `lamp`, and the shared
/// enrollment `plug`.
pub struct Site {
    folder: TempDir,
}

impl Site {
    /// Creates a site without a cloud.
    pub fn new() -> Self {
        Self::with("")
    }

    /// Creates a site whose cloud is at this endpoint.
    pub fn with_cloud(endpoint: &str) -> Self {
        Self::with(&format!(
            "[iot_platform]\nendpoint = \"{endpoint}\"\nregion = \"cn-shanghai\"\nqps = 1000\n"
        ))
    }

    /// Creates a site with additional sections in its configuration.
    pub fn with(sections: &str) -> Self {
        let site = Self { folder: TempDir::new().expect("a folder") };
        site.write(
            "certdist.toml",
            &format!(
                "listen = \"127.0.0.1:0\"\ndatabase = \"sqlite:certdist.db\"\n{sections}\n\
                 [[enrollment]]\nname = \"lamp\"\nproduct_key = \"a1lamp\"\nkind = \"derived\"\nkey = \"hex:{MASTER}\"\n\
                 [[enrollment]]\nname = \"plug\"\nproduct_key = \"a1plug\"\nkind = \"shared\"\n\
                 identity = \"{SHARED_IDENTITY}\"\nkey = \"hex:{}\"\n",
                hex::encode(SHARED_KEY)
            ),
        );
        site
    }

    /// Creates a site with this configuration.
    pub fn configured(configuration: &str) -> Self {
        let site = Self { folder: TempDir::new().expect("a folder") };
        site.write("certdist.toml", configuration);
        site
    }

    /// Returns the path of a file in the site's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file in the site's folder.
    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("it can be written");
    }

    /// Returns a `certdist` command that runs in the site's folder.
    pub fn certdist(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(CERTDIST);
        command.args(arguments).current_dir(self.folder.path()).env_remove("RUST_LOG");
        command.env("ALIBABA_CLOUD_ACCESS_KEY_ID", "test-id");
        command.env("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "test-secret");
        command
    }

    /// Runs a `certdist` command and returns its output.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.certdist(arguments).output().expect("certdist runs")
    }

    /// Runs a `certdist` command that succeeds, and returns its standard output.
    pub fn succeeds(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        stdout(&output)
    }

    /// Imports a table in CSV format.
    pub fn import(&self, csv: &str) {
        self.write("import.csv", csv);
        let output = self.run(&["import", "import.csv"]);
        assert!(output.status.success(), "{}", stderr(&output));
    }

    /// Starts the server.
    pub fn serve(&self) -> Process {
        Process::start(&mut self.certdist(&["serve"]))
    }

    /// Starts a simulated cloud.
    pub fn simulator(&self, arguments: &[&str]) -> Process {
        let mut all = vec!["simulator", "--listen", "127.0.0.1:0"];
        all.extend(arguments);
        Process::start(&mut self.certdist(&all))
    }
}

/// Starts a server with one device that also answers over plain CoAP. Returns the address for plain
/// CoAP.
pub fn serve_plain_coap() -> (Site, Process, SocketAddr) {
    // The port is free now and stays free, because no other test uses this address.
    let free = UdpSocket::bind("127.3.5.7:0").expect("a socket").local_addr().expect("an address");
    let site = Site::with(&format!("[plain_coap]\nlisten = \"{free}\"\nenrollment = \"plug\"\n"));
    site.import(
        "deviceId,enrollment,deviceName,deviceSecret\nPLUG-1,plug,plug-1,secretofplug10000000000000000000\n",
    );
    let server = site.serve();
    (site, server, free)
}

/// Returns what a command wrote to standard error.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Returns what a command wrote to standard output.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Sends a GET request over HTTP/1.0 and returns the body.
pub fn http_get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    std::io::Write::write_all(
        &mut stream,
        format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes(),
    )
    .expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
}

/// Runs the load generator that `make clients` builds.
pub fn coapsload(arguments: &[&str]) -> Output {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("build/coapsload");
    assert!(path.exists(), "{} is missing: run `make clients`", path.display());
    Command::new(path).args(arguments).output().expect("it runs")
}
