# Entry points for people. The work is done by the scripts in guest-image/ and by
# the programs of the Cargo workspace; both find out themselves what is up to
# date, so the targets here are all phony.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

cargo := guest-image/toolbox/cargo.sh
ringbar-ci := build/cargo/x86_64-unknown-linux-gnu/release/ringbar-ci

# The cards in the tree: the template of `make new`, and its examples.
cards := mycard grabber hasher

# Through the environment, literally: neither make nor the shell gets to see
# quotes and dollar signs in a command that is meant for the guest.
unexport NAME DIR CMD SHARE TIMEOUT TRANSPORT JOB DEVICES ROUNDS INSTRUCTIONS INSTRUCTION_ROUNDS TARGET SECONDS
ifdef NAME
export RINGBAR_NAME := $(value NAME)
endif
ifdef DIR
export RINGBAR_DIR := $(value DIR)
endif
ifdef CMD
export RINGBAR_CMD := $(value CMD)
endif
ifdef SHARE
export RINGBAR_SHARE := $(value SHARE)
endif
ifdef TIMEOUT
export RINGBAR_TIMEOUT := $(value TIMEOUT)
endif
ifdef TRANSPORT
export RINGBAR_TRANSPORT := $(value TRANSPORT)
endif
ifdef JOB
export RINGBAR_JOB := $(value JOB)
endif
ifdef DEVICES
export RINGBAR_DEVICES := $(value DEVICES)
endif
ifdef ROUNDS
export RINGBAR_ROUNDS := $(value ROUNDS)
endif
ifdef INSTRUCTIONS
export RINGBAR_INSTRUCTIONS := $(value INSTRUCTIONS)
endif
ifdef INSTRUCTION_ROUNDS
export RINGBAR_INSTRUCTION_ROUNDS := $(value INSTRUCTION_ROUNDS)
endif

# Says what comes next, and after how many seconds.
started := $(shell date +%s)
stage = @echo "== $(1) ($$(( $$(date +%s) - $(started) )) s)"

.PHONY: help
help: ## Show this text
	@echo 'Ringbar. Targets:'
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  \1\t\2/p' Makefile | expand -t 18
	@echo
	@echo 'Variables:'
	@echo '  NAME, DIR               for new: name of the card, folder to create'
	@echo '  CMD, SHARE, TIMEOUT     for exec: command, folder to mount at /mnt, timeout in seconds'
	@echo '  TRANSPORT               vhost-user (default) or vfio-user: for run, shell, exec, bench, test'
	@echo '  JOB, DEVICES, ROUNDS    for bench: jobs (also: targets, sweep, lean), devices, number of rounds'
	@echo '  INSTRUCTIONS=off        for bench: do not count the instructions of the guest'
	@echo '  INSTRUCTION_ROUNDS      for bench: number of counts of the instructions (3); their median counts'
	@echo '  TARGET, SECONDS         for fuzz: target (all), seconds for each (60)'
	@echo '  RINGBAR_ACCEL           kvm or tcg: accelerator of QEMU'
	@echo '  RINGBAR_QEMU            path or toolbox: QEMU of the host or of the toolbox'
	@echo '  RINGBAR_RUST            host or toolbox: Rust for the user-space programs'
	@echo '  RINGBAR_MIRROR          Debian mirror, for example http://deb.debian.org/debian'
	@echo
	@echo 'make reports any failure as 2. For the exact exit status of a command in the'
	@echo "guest: ci/exec --command '...' [--share DIR] [--timeout SECONDS]"

.PHONY: run
run: image ## Boot the VM, load the driver, verify it with fio, print a table
	@$(ringbar-ci) run

.PHONY: shell
shell: image ## Boot the same VM with a prompt on this terminal
	@$(ringbar-ci) shell

.PHONY: exec
exec: image ## Run CMD='...' in the VM, with the folder SHARE=... at /mnt
	@$(ringbar-ci) exec

.PHONY: test
test: image debug ## Format, lints, unit and property tests, tests in VMs
	$(call stage,format)
	@$(cargo) fmt --all --check
	@guest-image/kernel/fmt-driver.sh --check
	$(call stage,lints)
	@$(cargo) clippy --workspace --all-targets -- -D warnings
	@guest-image/kernel/kbuild.sh stock build/clippy CLIPPY=1 KRUSTFLAGS=-Dwarnings KCFLAGS=-Werror modules
	@for card in $(cards); do $(MAKE) --no-print-directory -C ci/kit/$$card lints; done
	$(call stage,misuse of the driver that must not compile)
	@guest-image/kernel/misuse.sh
	$(call stage,unit and property tests)
	@mkdir -p build/test
	@# Tests that fail are counted below; anything else that fails ends it here.
	@$(cargo) test --workspace --no-fail-fast 2>&1 | tee build/test/unit.log || grep -q '^test result: FAILED' build/test/unit.log
	@guest-image/test.sh 2>&1 | tee build/test/setup.log || grep -q '^test result: FAILED' build/test/setup.log
	@cat build/test/setup.log >>build/test/unit.log
	$(call stage,models of what threads do to each other)
	@$(cargo) --config 'target.x86_64-unknown-linux-gnu.rustflags=["--cfg=loom"]' \
		test --target-dir build/loom -p ringbar-engine -p ringbar-user-ring --lib models 2>&1 | tee build/test/models.log || grep -q '^test result: FAILED' build/test/models.log
	@cat build/test/models.log >>build/test/unit.log
	$(call stage,fuzz targets)
	@device/fuzz/run.sh 2>&1 | tee build/test/fuzz.log || grep -q '^test result: FAILED' build/test/fuzz.log
	@cat build/test/fuzz.log >>build/test/unit.log
	$(call stage,tests in the VM)
	@$(ringbar-ci) test $(all) --unit-log build/test/unit.log

.PHONY: check
check: setup ## Format, lints, scripts, spelling, links, licences: under a minute when warm
	@guest-image/check.sh

.PHONY: advisories
advisories: ## Compare the crates with the list of known vulnerabilities, from the network
	@guest-image/check.sh advisories

.PHONY: hooks
hooks: ## Have git run `make check` before each commit
	@guest-image/hooks.sh

.PHONY: rust-analyzer
rust-analyzer: setup ## Describe the driver to editors; print the setting for both worlds
	@project=$$(guest-image/kernel/rust-analyzer.sh); \
	echo "rust-analyzer.linkedProjects = [\"$(CURDIR)/Cargo.toml\", \"$$project\"]"

.PHONY: doc
doc: driver ## Make the documentation of all items, of user space and of the driver
	@$(cargo) doc --workspace --no-deps --document-private-items
	@echo $(CURDIR)/build/cargo/x86_64-unknown-linux-gnu/doc/ringbar_engine/index.html
	@guest-image/kernel/driver-doc.sh

.PHONY: fuzz
fuzz: setup ## Fuzz the device for SECONDS=... (60); TARGET=... for one target
	@RINGBAR_SECONDS=$(or $(SECONDS),60) device/fuzz/run.sh $(TARGET)

.PHONY: test-all
test-all: all := --all
test-all: test ## As test, with the suites that take long on the debug kernel

.PHONY: new
new: device ## Write a card of your own, called NAME=..., to DIR=... (NAME): device, driver, test
	@$(ringbar-ci) new

.PHONY: bench
bench: image ## Compare with virtio-blk, vhost-user-blk and NVMe; JOB=... for one job
	@plugin=$$(ci/bench/plugin/build.sh); RINGBAR_PLUGIN=$$plugin $(ringbar-ci) bench

.PHONY: docs
docs: ## Make a book of the documents, build/book/html; the first time builds mdBook
	@docs/book.sh

.PHONY: setup
setup: ## Fetch and prepare everything that the other targets need
	@guest-image/setup.sh

.PHONY: device
device: setup ## Build the device and the other user-space programs
	@$(cargo) build --release --workspace --bins

.PHONY: driver
driver: setup ## Build the kernel module, build/driver/ringbar.ko
	@guest-image/kernel/kbuild.sh stock build/driver modules

.PHONY: image
image: device driver ## Build the guest's root file system
	@guest-image/rootfs/initramfs.sh stock build/driver/ringbar.ko $(dir $(ringbar-ci))

.PHONY: debug
debug: device ## Build the debug kernel, and driver and guest image for it
	@guest-image/setup.sh debug
	@guest-image/kernel/kbuild.sh debug build/driver-debug modules
	@guest-image/rootfs/initramfs.sh debug build/driver-debug/ringbar.ko $(dir $(ringbar-ci))

.PHONY: fmt
fmt: setup ## Format the Rust files, in user space and in the driver
	@$(cargo) fmt --all
	@guest-image/kernel/fmt-driver.sh

.PHONY: clippy
clippy: setup ## Lint the Rust files, in user space and in the driver
	@$(cargo) clippy --workspace --all-targets -- -D warnings
	@guest-image/kernel/kbuild.sh stock build/clippy CLIPPY=1 KRUSTFLAGS=-Dwarnings KCFLAGS=-Werror modules
	@for card in $(cards); do $(MAKE) --no-print-directory -C ci/kit/$$card lints; done

.PHONY: update
update: ## Update the toolbox to the current packages of Debian
	@guest-image/toolbox/update.sh
	@guest-image/setup.sh

.PHONY: clean
clean: ## Delete what was built in this checkout
	rm -rf build

.PHONY: distclean
distclean: clean ## As clean, and delete the cache with toolbox and kernel tree
	@. guest-image/toolbox/lib.sh; note "deleting $$cache"; remove "$$cache"
