//! The device's half on emulated boards: three boards, each with two DTLS stacks. A board gets an
//! address by DHCP, fetches its certificate, stores it and signs in over MQTT. Each test boots all
//! six images against a real server, and each boot is bounded in time and in memory.

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    sync::{LazyLock, Mutex, atomic::Ordering::SeqCst},
    thread,
    time::Duration,
};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::support::{
    MASTER, Process, Site,
    console::free_address,
    document::{Typed, agree, blocks_of, typed},
    network::{ForgetfulNetwork, bad_network},
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// The page that states the memory an image may use.
const SIZES: &str = include_str!("../../firmware/SIZE.md");
/// Time in seconds after which the emulator is ended. A board loses its patience before.
const DEADLINE: &str = "90";
/// Exit code of a board that has not signed in within its patience.
const OUT_OF_PATIENCE: i32 = 2;
/// Exit code of a board that has lost its power.
const POWER_CUT: i32 = 75;
/// Exit code of a board that has ended with a fault.
const FAULT: i32 = 70;

/// An image for a board.
struct Image {
    /// The emulator's name of the board.
    board: &'static str,
    /// The DTLS stack.
    stack: &'static str,
}

const IMAGES: [Image; 6] = [
    Image { board: "lm3s6965evb", stack: "tinydtls" },
    Image { board: "lm3s6965evb", stack: "mbedtls" },
    Image { board: "mps2-an385", stack: "tinydtls" },
    Image { board: "mps2-an385", stack: "mbedtls" },
    Image { board: "mps2-an505", stack: "tinydtls" },
    Image { board: "mps2-an505", stack: "mbedtls" },
];

impl Image {
    fn name(&self) -> String {
        format!("{}-{}", self.board, self.stack)
    }

    fn folder(&self) -> PathBuf {
        Path::new(ROOT).join("build/boards").join(self.name())
    }

    /// Returns the command that builds the image.
    fn make(&self) -> Command {
        let mut command = Command::new("make");
        command.args(["-s", "-j2", "-C", "firmware/examples/baremetal"]).current_dir(ROOT);
        command.args([format!("BOARD={}", self.board), format!("STACK={}", self.stack)]);
        command
    }

    /// Returns the largest stack and heap in bytes that SIZE.md states.
    fn stated_memory(&self) -> [usize; 2] {
        let [.., stack, heap] = numbers(SIZES, &format!("| {} | {} |", self.board, self.stack))[..] else {
            panic!("no row for {}", self.name())
        };
        [stack, heap]
    }
}

/// Returns the numbers in the row of a table that begins with these cells.
fn numbers(table: &str, row: &str) -> Vec<usize> {
    let line =
        table.lines().find_map(|line| line.strip_prefix(row)).unwrap_or_else(|| panic!("no row {row}"));
    line.trim_matches('|').split('|').map(|cell| cell.trim().parse().expect("a number")).collect()
}

/// Builds all images, once.
fn built() -> &'static [Image; 6] {
    static BUILT: LazyLock<()> = LazyLock::new(|| {
        for image in &IMAGES {
            let made = image.make().arg("RANDOM_SOURCE=seeded_random.c").output().expect("make");
            let told = String::from_utf8_lossy(&made.stderr);
            assert!(made.status.success(), "{}: run `make clients` once\n{told}", image.name());
        }
    });
    LazyLock::force(&BUILT);
    &IMAGES
}

/// Runs a test with each image, all at once.
fn on_each_image(test: impl Fn(&Image) + Sync) {
    thread::scope(|scope| {
        for image in built() {
            thread::Builder::new().name(image.name()).spawn_scoped(scope, || test(image)).expect("a thread");
        }
    });
}

/// A board with its flash, which the boots share.
struct Board<'a> {
    image: &'a Image,
    site: &'a Site,
    server: SocketAddr,
    device: String,
    key: String,
    /// Further arguments of each boot.
    settings: Vec<String>,
    /// File of the image, if it is another one than usual.
    elf: Option<PathBuf>,
}

/// Result of a boot.
struct Boot {
    code: Option<i32>,
    /// Text that the board has printed.
    text: String,
}

impl<'a> Board<'a> {
    /// Returns a new board with this device ID. Its key is derived from the master key, and the seed
    /// of its random numbers is the image's number.
    fn new(image: &'a Image, site: &'a Site, server: SocketAddr, device: String) -> Self {
        let mut mac = Hmac::<Sha256>::new_from_slice(&hex::decode(MASTER).expect("hex")).expect("a key");
        mac.update(device.as_bytes());
        let key = hex::encode(&mac.finalize().into_bytes()[..16]);
        let seed = 1 + IMAGES.iter().position(|other| other.name() == image.name()).expect("an image");
        Self {
            image,
            site,
            server,
            device,
            key,
            settings: vec![format!("seed={seed}"), "first_delay=1".into()],
            elf: None,
        }
    }

    /// Returns the path of the file that stands for the board's flash.
    fn flash(&self) -> PathBuf {
        self.site.path(&format!("{}.flash", self.device))
    }

    /// Boots the board with these further settings, until it has signed in or has lost its patience.
    fn boot(&self, settings: &[&str]) -> Boot {
        let output = Command::new("timeout")
            .arg(DEADLINE)
            .arg(Path::new(ROOT).join("firmware/examples/baremetal/run"))
            .args([self.image.board, self.image.stack, "server=10.0.2.2"])
            .arg(format!("port={}", self.server.port()))
            .arg(format!("identity={}", self.device))
            .arg(format!("key={}", self.key))
            .arg(format!("store={}", self.flash().display()))
            .args(&self.settings)
            .args(settings)
            .env("IMAGE", self.elf.clone().unwrap_or_else(|| self.image.folder().join("image.elf")))
            .output()
            .expect("timeout");
        let text =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        let boot = Boot { code: output.status.code(), text };
        if ![Some(POWER_CUT), Some(FAULT)].contains(&boot.code) {
            self.assert_memory(&boot);
        }
        boot
    }

    fn assert_memory(&self, boot: &Boot) {
        let line = boot.text.lines().find_map(|line| line.strip_prefix("memory: stack "));
        let used = line.and_then(|line| line.split_once(", heap "));
        let Some((stack, heap)) = used else {
            panic!("{}: the board has not ended by itself: {}", self.device, boot.text)
        };
        let used = [stack, heap].map(|number| number.parse::<usize>().expect("a number"));
        let stated = self.image.stated_memory();
        assert!(
            used[0] <= stated[0] && used[1] <= stated[1],
            "{}: stack and heap are {used:?}, but firmware/SIZE.md states {stated:?}",
            self.image.name()
        );
    }

    /// Boots the board, which must sign in. Returns what it has printed.
    fn signs_in(&self, settings: &[&str]) -> String {
        let boot = self.boot(settings);
        assert!(
            boot.code == Some(0) && boot.text.contains("\nmqtt: signed in\n"),
            "{} {:?}: {:?} {}",
            self.device,
            self.settings,
            boot.code,
            boot.text
        );
        boot.text
    }

    /// Boots the board, which must not get a certificate within its patience.
    fn gets_nothing(&self, settings: &[&str]) -> String {
        let boot = self.boot(settings);
        assert!(
            boot.code == Some(OUT_OF_PATIENCE) && !boot.text.contains("certdist: done"),
            "{} {:?}: {:?} {}",
            self.device,
            self.settings,
            boot.code,
            boot.text
        );
        boot.text
    }
}

/// Returns the device ID of an image's board.
fn device_of(image: &Image, id: &str) -> String {
    format!("{id}-{}", image.name())
}

/// A server, a cloud, and one device for each image in the enrollment `lamp`, which are not registered.
struct House {
    site: Site,
    /// Address of the server.
    server: SocketAddr,
    /// The server and the cloud, which end with the house. Tests share a house among threads.
    _processes: Mutex<[Process; 2]>,
}

impl House {
    fn new() -> Self {
        Self::with(&[], "")
    }

    /// Creates a house. The simulated cloud has these arguments, and the enrollment these further lines.
    fn with(cloud: &[&str], lines: &str) -> Self {
        let (site, cloud) = site(cloud, "127.0.0.1:0", lines);
        let server = site.serve();
        Self { site, server: server.address, _processes: [server, cloud].into() }
    }

    /// Starts another server on the same table, with the configuration as it is now.
    fn second_server(&self) -> Process {
        self.site.serve()
    }

    fn board<'a>(&'a self, image: &'a Image) -> Board<'a> {
        Board::new(image, &self.site, self.server, device_of(image, "LAMP"))
    }
}

/// Creates a site with its cloud. Its server will listen on this address.
fn site(cloud: &[&str], listen: &str, lines: &str) -> (Site, Process) {
    let mut arguments = vec!["simulator", "--listen", "127.0.0.1:0", "--mqtt", "127.0.0.1:0"];
    arguments.extend(cloud);
    let cloud = Process::start(&mut Site::new().certdist(&arguments));
    let mqtt = cloud.next_address();
    // The emulator's network reaches the host's loopback as 10.0.2.2.
    let site = Site::configured(&format!(
        "listen = \"{listen}\"\ndatabase = \"sqlite:certdist.db\"\n\
         [iot_platform]\nendpoint = \"http://{}\"\nregion = \"cn-shanghai\"\nqps = 1000\nhost = \"10.0.2.2:{}\"\n\
         [[enrollment]]\nname = \"lamp\"\nproduct_key = \"a1lamp\"\nkind = \"derived\"\nkey = \"hex:{MASTER}\"\n{lines}\n",
        cloud.address,
        mqtt.port()
    ));
    let devices: String = IMAGES.iter().map(|image| format!("{},lamp\n", device_of(image, "LAMP"))).collect();
    site.import(&format!("deviceId,enrollment\n{devices}"));
    (site, cloud)
}

/// Returns how many times a text contains another one.
fn count(text: &str, wanted: &str) -> usize {
    text.matches(wanted).count()
}

#[test]
fn a_board_fetches_its_certificate_stores_it_and_signs_in_and_asks_only_once() {
    let house = House::new();
    let printed = Mutex::new(String::new());
    on_each_image(|image| {
        let board = house.board(image);
        let text = board.signs_in(&[]);
        let steps = [
            "network: 10.0.2.15",
            "certdist: connecting",
            "certdist: asking",
            "certdist: done",
            "certificate: a1lamp ",
            "mqtt: 10.0.2.2:",
        ];
        let places: Vec<_> =
            steps.iter().map(|step| text.find(step).unwrap_or_else(|| panic!("{step}: {text}"))).collect();
        assert!(places.is_sorted(), "{text}");
        printed.lock().expect("not poisoned").push_str(&text);

        // A socket in the server's place shows that the second boot sends it nothing.
        let silent = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        silent.set_nonblocking(true).expect("set");
        let board = Board { server: silent.local_addr().expect("an address"), ..board };
        let text = board.signs_in(&[]);
        assert!(!text.contains("connecting"), "{text}");
        assert!(silent.recv(&mut [0; 1]).is_err(), "{} asks again", board.device);
    });
    let exported = String::from_utf8(house.site.run(&["export"]).stdout).expect("UTF-8");
    let (header, rows) = exported.split_once('\n').expect("a header");
    let column = header.split(',').position(|name| name == "deviceSecret").expect("a column");
    let secrets: Vec<_> = rows.lines().filter_map(|row| row.split(',').nth(column)).collect();
    assert!(secrets.len() == IMAGES.len() && secrets.iter().all(|secret| secret.len() == 32), "{exported}");
    let printed = printed.into_inner().expect("not poisoned");
    assert!(secrets.iter().all(|secret| !printed.contains(secret)), "a board prints its secret: {printed}");
}

#[test]
fn a_board_with_a_wrong_key_waits_and_says_so() {
    let house = House::new();
    on_each_image(|image| {
        let board = Board { key: "00112233445566778899aabbccddeeff".into(), ..house.board(image) };
        let text = board.gets_nothing(&["speed=4", "patience=6000"]);
        assert!(text.contains("certdist: waiting for ") && text.contains("wrong key or identity"), "{text}");
        // The least delay is ten minutes of the board's clock.
        assert_eq!(count(&text, "certdist: connecting"), 1, "{text}");
    });
}

#[test]
fn a_board_that_is_refused_stops_and_does_not_hurry() {
    let house = House::new();
    on_each_image(|image| {
        let board = house.board(image);
        assert!(house.site.run(&["device", "disable", &board.device]).status.success());
        let text = board.gets_nothing(&["patience=2000"]);
        assert!(text.contains("certdist: stopped, answered 4.03"), "{text}");
        assert_eq!(count(&text, "certdist: connecting"), 1, "{text}");

        let stranger = Board::new(image, &house.site, house.server, device_of(image, "STRANGER"));
        let text = stranger.gets_nothing(&["patience=2000"]);
        assert!(text.contains("certdist: stopped, answered 4.04"), "{text}");
        assert_eq!(count(&text, "certdist: connecting"), 1, "{text}");

        // Once the operator has acted, the next question is answered.
        assert!(house.site.run(&["device", "enable", &board.device]).status.success());
        board.signs_in(&[]);
    });
}

#[test]
fn a_board_that_asks_too_often_comes_back_after_max_age() {
    let house = House::with(&[], "[limits]\nrequests_per_identity = { burst = 1, every = 5 }");
    on_each_image(|image| {
        let board = house.board(image);
        // On a busy machine, more than five seconds may pass between two requests.
        let refused = (0..5).map(|_| {
            let text = board.signs_in(&[]);
            fs::remove_file(board.flash()).expect("its flash");
            text
        });
        let text = refused.skip(1).find(|text| text.contains(" ms, answered 4.29 ")).expect("a refusal");
        assert_eq!(
            count(&text, "certdist: waiting for "),
            1,
            "it comes back once, and not too early: {text}"
        );
    });
}

#[test]
fn a_board_that_is_too_early_waits_as_long_as_the_server_says() {
    let house = House::with(&[], "opens = 2099-01-01T00:00:00Z");
    on_each_image(|image| {
        let text = house.board(image).gets_nothing(&["patience=2000"]);
        let waiting =
            text.lines().find_map(|line| line.strip_prefix("certdist: waiting for ")).expect("it waits");
        let (wait, why) = waiting.split_once(" ms, ").expect("a reason");
        assert!(why.starts_with("answered 5.03 "), "{text}");
        // Max-Age is an hour at most; a device waits up to half as long again.
        assert!((3_600_000..=5_400_000).contains(&wait.parse::<u32>().expect("a number")), "{text}");
        assert_eq!(count(&text, "certdist: connecting"), 1, "{text}");
    });
    let configuration = fs::read_to_string(house.site.path("certdist.toml")).expect("it is there");
    house.site.write("certdist.toml", &configuration.replace("opens = 2099-01-01T00:00:00Z", ""));
    let second = house.second_server();
    let server = second.address;
    on_each_image(|image| {
        Board { server, ..house.board(image) }.signs_in(&[]);
    });
}

#[test]
fn a_board_waits_for_a_slow_cloud_without_asking_again() {
    let house = House::with(&["--latency", "3s"], "");
    on_each_image(|image| {
        let text = house.board(image).signs_in(&[]);
        assert!(text.contains("certdist: registering"), "{text}");
        assert_eq!(count(&text, "certdist: connecting"), 1, "{text}");
    });
}

#[test]
fn a_board_finds_a_server_that_starts_later() {
    let address = free_address();
    let silent = UdpSocket::bind(address).expect("a socket");
    silent.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
    let (site, _cloud) = site(&[], &address.to_string(), "");
    thread::scope(|scope| {
        let late = scope.spawn(|| {
            // A handshake of four seconds has three datagrams at most, so six are of two.
            let mut received = BTreeMap::<SocketAddr, u32>::new();
            while received.values().filter(|datagrams| **datagrams >= 6).count() < IMAGES.len() {
                let (_, board) = silent.recv_from(&mut [0; 2048]).expect("a board asks");
                *received.entry(board).or_default() += 1;
            }
            drop(silent);
            site.serve()
        });
        on_each_image(|image| {
            let board = Board::new(image, &site, address, device_of(image, "LAMP"));
            let text = board.signs_in(&["speed=4", "handshake=4000", "retry=1000"]);
            assert!(text.contains(" ms, silence\n"), "{text}");
        });
        drop(late.join());
    });
}

#[test]
fn a_board_gets_its_certificate_through_a_network_that_loses_a_fifth() {
    let house = House::new();
    on_each_image(|image| {
        for seed in 1..=2 {
            println!("{}: seed {seed}", image.name());
            let server = bad_network(house.server, seed);
            let board = Board { server, ..house.board(image) };
            board.signs_in(&["speed=4", "retry=2000"]);
            fs::remove_file(board.flash()).expect("its flash");
        }
    });
}

/// RFC 9146: the session continues from the new address. tinydtls has no connection IDs.
#[test]
fn a_board_whose_address_moves_keeps_its_session() {
    let house = House::with(&["--latency", "2s"], "");
    on_each_image(|image| {
        if image.stack == "tinydtls" {
            return;
        }
        let network = ForgetfulNetwork::new(house.server);
        let board = Board { server: network.address, ..house.board(image) };
        board.signs_in(&[]);
        assert!(network.moved.load(SeqCst) > 0, "{}", board.device);
        assert_eq!(network.handshakes.load(SeqCst), 0, "{} began a new handshake", board.device);
    });
}

#[test]
fn a_board_that_loses_its_power_while_it_stores_has_a_certificate_afterwards() {
    let house = House::new();
    on_each_image(|image| {
        let board = house.board(image);
        let mut cuts = 0;
        loop {
            let boot = board.boot(&[&format!("cut={}", cuts + 1)]);
            if boot.code != Some(POWER_CUT) {
                assert_eq!(boot.code, Some(0), "{}", boot.text);
                break;
            }
            cuts += 1;
            assert!(!boot.text.contains("certdist: done"), "it is done before it has stored: {}", boot.text);
            board.signs_in(&[]);
            fs::remove_file(board.flash()).expect("its flash");
        }
        assert!((2..20).contains(&cuts), "{}: {cuts} cuts", board.device);
    });
}

#[test]
fn the_documents_show_what_a_board_prints() {
    let house = House::new();
    house.site.import("deviceId\nLAMP-1\n");
    let page = include_str!("../../docs/boards.md");
    let board = Board::new(&built()[2], &house.site, house.server, "LAMP-1".into());
    for document in [page, include_str!("../../README.md")] {
        let is_of_board = |run: &Typed| run.command.contains("baremetal/run");
        let runs = blocks_of(document, "console").into_iter().flat_map(typed).filter(is_of_board);
        assert_eq!(runs.clone().count(), 2, "the first boot and another one");
        for run in runs {
            let board_and_stack = format!("run {} {} ", board.image.board, board.image.stack);
            assert!(run.command.contains(&board_and_stack), "{run:?}");
            let text = board.signs_in(&[]);
            let printed: Vec<_> = text.lines().collect();
            assert!(agree(&run.shown, &printed).is_some(), "{run:?} but {text}");
        }
        fs::remove_file(board.flash()).expect("its flash");
    }
    // The page lists each setting that the board reads.
    let sources = [
        include_str!("../../firmware/examples/baremetal/main.c"),
        include_str!("../../firmware/examples/baremetal/seeded_random.c"),
    ];
    for call in sources.iter().flat_map(|source| source.split("argument").skip(1)) {
        let Some(name) = call.strip_prefix("_number").unwrap_or(call).strip_prefix("(\"") else { continue };
        let name = name.split('"').next().unwrap_or_default();
        assert!(page.contains(&format!("`{name}`")), "docs/boards.md does not list {name}");
    }
}

#[test]
fn a_board_whose_stack_is_full_ends_instead_of_overwriting_its_data() {
    let house = House::new();
    on_each_image(|image| {
        let elf = image.folder().join("small_stack.elf");
        let mut make = image.make();
        make.args(["RANDOM_SOURCE=seeded_random.c", "stack_size=1024", &format!("image={}", elf.display())]);
        assert!(make.status().expect("make").success());
        let board = Board { elf: Some(elf), ..house.board(image) };
        let boot = board.boot(&[]);
        assert!(boot.code == Some(FAULT) && boot.text.ends_with("fault\n"), "{:?} {}", boot.code, boot.text);
    });
}

/// Checks the limits of docs/firmware.md.
#[test]
fn a_board_takes_the_longest_identity_and_key_and_refuses_longer_ones() {
    let own = "[[enrollment]]\nname = \"own\"\nproduct_key = \"a1own\"\nkind = \"individual\"";
    let house = House::with(&[], own);
    let key_of = |image: &Image| "5a".repeat(if image.stack == "tinydtls" { 16 } else { 64 });
    let id_of = |image: &Image| format!("{:x<64}", device_of(image, "OWN"));
    let row = |image| format!("{0},own,{0},{1}\n", id_of(image), key_of(image));
    let rows: String = IMAGES.iter().map(row).collect();
    house.site.import(&format!("deviceId,enrollment,pskIdentity,psk\n{rows}"));
    on_each_image(|image| {
        let own = |device, key| Board { key, ..Board::new(image, &house.site, house.server, device) };
        own(id_of(image), key_of(image)).signs_in(&[]);
        let mut longer = vec![own(id_of(image) + "x", key_of(image))];
        if image.stack == "tinydtls" {
            longer.push(own(id_of(image).replace("OWN", "KEY"), key_of(image) + "5a"));
        }
        for board in longer {
            let boot = board.boot(&[]);
            let said = boot.text.ends_with("identity or key is missing, or too long for the DTLS stack\n");
            assert!(boot.code == Some(FAULT) && said, "{:?} {}", boot.code, boot.text);
        }
    });
}

/// The port for lwIP tries to get its control block with each datagram, until one is free.
#[test]
fn a_board_without_a_free_control_block_comes_back() {
    let house = House::new();
    let image = &built()[2];
    let folder = Path::new(ROOT).join("build/boards/one_block");
    let elf = folder.join("image.elf");
    let mut make = image.make();
    // DHCP uses the only control block.
    make.args(["RANDOM_SOURCE=seeded_random.c", "defines=-DMEMP_NUM_UDP_PCB=1"]);
    make.args([format!("build={}", folder.display()), format!("image={}", elf.display())]);
    assert!(make.status().expect("make").success());
    let board = Board { elf: Some(elf), ..house.board(image) };
    let text = board.gets_nothing(&["speed=4", "handshake=2000", "retry=1000", "patience=4000"]);
    assert!(count(&text, "certdist: connecting") >= 2 && text.contains(" ms, silence\n"), "{text}");
}

#[test]
fn an_image_without_a_source_of_random_numbers_does_not_link() {
    let image = &built()[2];
    let without = image.folder().join("without_random.elf");
    let made = image.make().arg(format!("image={}", without.display())).output().expect("make");
    let told = String::from_utf8_lossy(&made.stderr);
    assert!(!made.status.success() && told.contains("undefined reference to `cd_random'"), "{told}");
    assert!(!without.exists());
}

/// The limits are what a maker plans with: an update of the kit must still fit.
#[test]
fn the_sizes_are_as_stated_and_within_their_limits() {
    let images = built();
    let measured = Command::new(Path::new(ROOT).join("firmware/size")).output().expect("it runs");
    assert!(measured.status.success(), "{}", String::from_utf8_lossy(&measured.stderr));
    let measured = String::from_utf8(measured.stdout).expect("UTF-8");
    let parts = [
        ("| core, sign-in and store |", 5632, 768),
        ("| with tinydtls |", 24 << 10, 2 << 10),
        ("| with mbedTLS |", 27 << 10, 5632),
    ];
    for (row, flash, ram) in parts {
        let stated = numbers(SIZES, row);
        assert!(stated[0] <= flash && stated[2] + stated[3] <= ram, "{row} {stated:?}");
        assert_as_stated(row, &numbers(&measured, row), &stated);
    }
    for image in images {
        let row = format!("| {} | {} |", image.board, image.stack);
        assert_as_stated(&row, &numbers(&measured, &row), &numbers(SIZES, &row));
    }
}

/// Checks that no measured value is larger than the stated one, or so much smaller that the page is
/// out of date.
fn assert_as_stated(row: &str, measured: &[usize], stated: &[usize]) {
    for (measured, stated) in measured.iter().zip(stated) {
        let is_as_stated = measured <= stated && stated - measured <= stated / 50;
        assert!(is_as_stated, "{row} {measured}, but firmware/SIZE.md states {stated}; see firmware/size");
    }
}
