//! Carries out the five steps of docs/getting-started.md exactly, on the simulated machine that
//! tests/newcomer.sh sets up and in a browser on that machine.
#![cfg(feature = "simulation")]

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    panic,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    alone,
    support::{
        CERTDIST,
        console::PASSWORD,
        document::{Typed, agree, blocks, typed},
        webdriver::{Browser, ENTER, keep_for_documents, pictures},
    },
};
use nix::sched::{CloneFlags, setns};

/// Maximum time to wait for a line of output, or for the machine to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine on which certdist is not installed, and a root shell on that machine.
struct Machine {
    child: Child,
    shell: Option<ChildStdin>,
    said: mpsc::Receiver<String>,
}

impl Machine {
    fn start() -> Self {
        let mut script = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/newcomer.sh"));
        let script = script.arg(CERTDIST).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = script.spawn().expect("bash");
        let shell = child.stdin.take();
        let stdout = child.stdout.take().expect("its output");
        let (say, said) = mpsc::channel();
        thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| say.send(line))
        });
        let mut machine = Self { child, shell, said };
        assert_eq!(machine.until_marked(), ("the machine is ready".into(), vec![]));
        machine
    }

    /// Returns the text after `==` of the next marked line, and the lines before it.
    fn until_marked(&mut self) -> (String, Vec<String>) {
        let mut before = Vec::new();
        loop {
            let line = self.said.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|error| panic!("{error} after {before:#?}"));
            match line.strip_prefix("== ") {
                Some(rest) => return (rest.into(), before),
                None => before.push(line),
            }
        }
    }

    /// Runs a command, passes `input` to it, and returns its output. The command must succeed.
    fn run(&mut self, prompt: char, command: &str, input: &str) -> Vec<String> {
        let shell = self.shell.as_mut().expect("open until the end");
        match prompt {
            '#' => writeln!(shell, "{{ {command}\n}} 2>&1 <<'TYPED'\n{input}\nTYPED"),
            _ => writeln!(shell, "runuser -u nobody -- bash 2>&1 <<'TYPED'\n{command}\nTYPED"),
        }
        .and_then(|()| writeln!(shell, "printf '\\n== %s\\n' $?"))
        .expect("it runs");
        let (status, mut said) = self.until_marked();
        said.pop_if(|last| last.is_empty());
        assert_eq!(status, "0", "{command}: {said:#?}");
        said
    }

    /// Moves this thread, and all processes that it starts, into the machine's network namespace.
    fn enter_network(&self) {
        let network = File::open(format!("/proc/{}/ns/net", self.child.id())).expect("its network");
        setns(network, CloneFlags::CLONE_NEWNET).expect("root may enter it");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // When its input is closed, the shell ends, and so do all processes in it.
        drop(self.shell.take());
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A user who follows the steps of the page.
struct Newcomer {
    machine: Machine,
    /// Values on the page that differ from run to run, such as secrets, each with the value of this
    /// run.
    known: Vec<(String, String)>,
    /// Output of `certdist admin hash-password`.
    password_hash: String,
}

impl Newcomer {
    /// Runs the commands of the step's next console block, and writes the files that follow this
    /// block.
    fn follow(&mut self, step: &mut Step) {
        let (language, session) = step.blocks.pop_front().expect("a console");
        assert_eq!(language, "console", "{session}");
        for line in typed(session) {
            if let Some(files) = line.command.strip_prefix("editor ") {
                for file in files.split(' ') {
                    let (_, text) = step.blocks.pop_front().expect("what is in the file");
                    self.write(file, text);
                }
            } else {
                self.carry_out(&line);
            }
        }
    }

    /// Replaces a file's content and keeps its permissions.
    fn write(&mut self, file: &str, text: &str) {
        let elided = "$argon2id$v=19$m=19456,t=2,p=1$…";
        self.machine.run('#', &format!("cat > {file}"), text.replace(elided, &self.password_hash).trim_end());
    }

    fn carry_out(&mut self, line: &Typed) {
        // The shell has no terminal, so certdist reads the password without a prompt.
        let shown: Vec<&str> = line.shown.iter().copied().filter(|line| *line != "Password:").collect();
        let input = if shown.len() < line.shown.len() { PASSWORD } else { "" };
        let said = self.machine.run(line.prompt, line.command, input);
        let said: Vec<&str> = said.iter().map(String::as_str).collect();
        let values = agree(&shown, &said);
        let values = values.unwrap_or_else(|| panic!("{line:#?} said {}", said.join("\n")));
        for (shown, said) in values {
            // Values that are equal on the page must be equal in this run, and values that differ
            // on the page must differ.
            let clash = self.known.iter().find(|(page, run)| (page == shown) != (run == said));
            assert!(clash.is_none(), "{}: {said} for {shown}, beside {clash:?}", line.command);
            self.known.push((shown.into(), said.into()));
        }
        if line.command == "certdist admin hash-password" {
            self.password_hash = said[0].into();
        }
    }
}

/// A section of the page.
struct Step<'p> {
    title: &'p str,
    text: &'p str,
    blocks: VecDeque<(&'p str, &'p str)>,
}

fn steps(page: &str) -> Vec<Step<'_>> {
    let sections = page.split("\n## ").skip(1).filter_map(|section| section.split_once('\n'));
    sections.map(|(title, text)| Step { title, text, blocks: blocks(text).into() }).collect()
}

#[test]
fn the_five_steps_of_getting_started_work_as_they_are_written() {
    let _alone = alone();
    // The test has a thread of its own, because the thread enters another network namespace.
    thread::spawn(five_steps).join().unwrap_or_else(|reason| panic::resume_unwind(reason));
}

fn five_steps() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/getting-started.md")).expect("docs/getting-started.md");
    let mut steps = steps(&page);
    let [install, serve, provision, disable, restore] = &mut steps[..] else { panic!("five steps") };
    let machine = Machine::start();
    machine.enter_network();
    let mut newcomer = Newcomer { machine, known: Vec::new(), password_hash: String::new() };

    assert_eq!(install.title, "1. Install and configure");
    newcomer.follow(install);
    newcomer.follow(install);
    assert_eq!(serve.title, "2. Import and serve");
    newcomer.follow(serve);

    assert_eq!(provision.title, "3. Provision a device, and look in the browser");
    newcomer.follow(provision);
    let browser = Browser::start();
    browser.show(1100, 800, false, true);
    let url = "http://127.0.0.1:9684/";
    assert!(provision.text.contains(url) && provision.text.contains("`lead`"));
    browser.open(url);
    browser.sign_in("lead");
    browser.wait_for("Served");
    browser.find("nav a[href='/devices']").click();
    browser.find("#q").write("PLUG");
    browser.press(&[ENTER]);
    browser.wait_for("ID begins with PLUG");
    browser.wait_for("PLUG0002");
    browser.find("a.id[href$='PLUG0001']").click();
    browser.wait_for("Has its certificate");
    browser.wait_for("issued: a1BwAGVxyz2/PLUG0001 · identity plug-batch-7 · from 127.0.0.1");
    // At this point, the only values that differ from the page are the secrets of the devices.
    let text = browser.text();
    let secrets = &newcomer.known;
    assert!(!secrets.is_empty() && secrets.iter().all(|(_, secret)| !text.contains(secret)), "{text}");

    assert_eq!(disable.title, "4. Disable it, and see the refusal");
    assert!(disable.text.contains("**Disable**"));
    browser.find("form[action='/device/disable'] button").click();
    browser.wait_for("It is disabled.");
    newcomer.follow(disable);
    let deadline = Instant::now() + PATIENCE;
    while !browser.text().contains("refused: Disabled here · identity plug-batch-7 · from 127.0.0.1") {
        assert!(Instant::now() < deadline, "the refusal does not show:\n{}", browser.text());
        browser.open(&format!("{url}device?id=PLUG0001"));
    }
    browser.wait_for("An operator has disabled this device");
    browser.wait_for("disabled · by console:lead");
    let picture = pictures().join("refused-wide-light.png");
    browser.picture(&picture);
    keep_for_documents(&picture);
    newcomer.follow(disable);

    assert_eq!(restore.title, "5. Back up and restore");
    newcomer.follow(restore);
    assert!(steps.iter().all(|step| step.blocks.is_empty()), "a block of the page was left out");
}
