# The two commands of README.md are `cargo run --release -- demo` and `make test`.

CARGO ?= cargo
BOUNCY_CASTLE = /usr/share/java/bctls.jar:/usr/share/java/bcprov.jar

.PHONY: test bench fuzz mutants clients lint deb screenshots

# Everything that must hold: style, lints, unit tests, and foreign clients
# against the real server.
test: clients lint
	$(CARGO) test --workspace
	$(CARGO) build --no-default-features
	$(CARGO) test --features testing --test corpus
	$(CARGO) run --features testing --example fuzz -- 100000

# Foreign clients and servers, from the distribution's packages; what it has not,
# from source.
clients:
	scripts/install-clients
	mkdir -p build
	$(CC) -O2 -Wall -Wno-deprecated-declarations -o build/coapsload benches/coapsload.c -lssl -lcrypto
	$(CC) -O2 -Wall -o build/mbedtls_client examples/mbedtls_client.c -lmbedtls -lmbedx509 -lmbedcrypto
	$(CC) -O2 -Wall -o build/wolfssl_client examples/wolfssl_client.c -lwolfssl
	$(CC) -O2 -Wall -o build/gnutls_client examples/gnutls_client.c -lgnutls
	javac -d build -cp $(BOUNCY_CASTLE) examples/BouncyCastleClient.java
	scripts/build-foreign
	scripts/install-axe

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings

# A Debian package in build/.
deb:
	$(CARGO) build --release --no-default-features
	packaging/build-deb target/release/certdist build

# Server CPU and memory beside libcoap's server, in one run; then at the sizes it is
# made for; then in memory, a worker's whole stack and the DTLS core.
bench: clients
	$(CARGO) build --release
	benches/compare
	benches/limits
	benches/storm
	$(CARGO) bench --features testing --bench stack
	$(CARGO) bench --features testing --bench dtls

# The console's pictures in docs/, by the tests that go into a browser.
screenshots: clients
	CERTDIST_SCREENSHOTS=1 $(CARGO) test --test browser --test newcomer

# Two minutes of programs against the DTLS and CoAP endpoints, steered by coverage, then
# ten million mutated messages.
fuzz:
	scripts/fuzz 120
	$(CARGO) run --release --features testing --example fuzz -- 10000000

# Each line of the DTLS and CoAP endpoints changed, one at a time: a test must fail.
mutants:
	scripts/mutants
