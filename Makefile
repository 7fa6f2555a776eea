# One command a job; what it does is in Rust (conformance/) or in the script that it calls.
SHELL := /bin/sh
.DEFAULT_GOAL := help

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## install the Debian packages that building and testing need (as root)
	sh conformance/packages.sh

.PHONY: demo
demo: deps ## three machines become a cluster, lose one, and run the voting application (as root)
	cargo build -p cli -p conformance --bins
	target/debug/conformance demo up

.PHONY: demo-down
demo-down: ## the demo, gone without a trace
	cargo build -p cli -p conformance --bins
	target/debug/conformance demo down

.PHONY: lab
lab: deps ## three machines on this one to play with (as root); `target/debug/conformance lab down` ends them
	cargo build --quiet -p cli -p conformance --bins
	target/debug/conformance lab up 3

.PHONY: check
check: ## format, lints, fast tests
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo nextest run --workspace --no-fail-fast -E 'not binary(/real_|^sim/)'

.PHONY: previous
previous: ## applyd of the version before this one, for tests of clusters of both
	cargo build --workspace --bin applyd --features cli/previous
	install -D target/debug/applyd target/previous/applyd

.PHONY: test
test: deps previous ## everything the project checks, on real parts (as root)
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo nextest run --workspace --no-fail-fast
	for suite in trixie forky; do \
		newer=$$(target/debug/conformance containerd $$suite) || exit 1; \
		PATH="$$newer:$$PATH" cargo nextest run --workspace --no-fail-fast \
			-E 'binary(real_containerd) | binary(real_node_images)' || exit 1; \
	done
	cargo test --workspace --doc --quiet
	cargo check -p reconciler --no-default-features

.PHONY: sim
sim: ## the simulator's part of it, told: what the schedules did, and the one that shows each planted bug
	cargo nextest run --no-fail-fast --success-output final -p reconciler -p controllers -E 'binary(/^sim/)'

.PHONY: night
night: deps ## long counts of what `make test` samples: FAULTS (200) random kills, half as many faults of a cluster, BUSY (1800) seconds of no moment to spare, SCHEDULES (5000) of each simulated suite, REQUESTS (100000) at a steady rate (as root)
	cargo build --quiet -p cli -p conformance --bins
	FAULTS=$${FAULTS:-200} cargo nextest run --no-capture -p cli -p conformance -E 'test(killed_at_random)'
	FAULTS=$$(($${FAULTS:-200} / 2)) cargo nextest run --no-capture -p cli -p conformance -E 'test(random_faults_lose_nothing)'
	SCHEDULES=$${SCHEDULES:-5000} cargo nextest run --no-fail-fast --success-output final -p reconciler -p controllers -E 'binary(/^sim_/)'
	REQUESTS=$${REQUESTS:-100000} cargo nextest run --no-capture -p cli -p conformance -E 'test(a_steady_load)'
	BUSY=$${BUSY:-1800} cargo nextest run --no-capture -p cli -p conformance -E 'test(without_a_moment)'

.PHONY: bench
bench: deps ## measures, in a release build; figures also in target/bench/*.json; PEER: a program that measures another orchestrator beside it (as root)
	cargo build --release --quiet -p cli -p conformance --bins
	target/release/conformance bench deploy
	target/release/conformance bench cluster $${PEER:+--beside "$$PEER"}
	target/release/conformance bench tunnel
	target/release/conformance bench store
	target/release/conformance bench mesh
	target/release/conformance bench library
	target/release/conformance bench scheduler
	target/release/conformance bench agents

.PHONY: picture
picture: deps ## the README's pictures, anew from a real run (as root)
	cargo build --quiet -p cli -p conformance --bins
	target/debug/conformance picture

.PHONY: fuzz
fuzz: ## each reader of foreign input against libFuzzer, FUZZ_SECONDS (60) each
	cd schemas/fuzz && mkdir -p corpus/dab corpus/objects corpus/deploy corpus/merge corpus/words
	cp examples/voting-app/voting-app.dab schemas/fuzz/corpus/dab/
	cp examples/voting-app/voting-app.yaml schemas/fuzz/corpus/deploy/
	cp schemas/fuzz/seeds/objects/* schemas/fuzz/corpus/objects/
	cd schemas/fuzz && for target in dab objects deploy merge words; do \
		cargo run --release --quiet --bin $$target -- corpus/$$target -max_total_time=$${FUZZ_SECONDS:-60} -timeout=10 \
			-rss_limit_mb=1024 || exit 1; \
	done
