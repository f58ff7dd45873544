# Builds a card and tests it in a virtual machine: the rules of all cards. A card's Makefile sets
# NAME, RINGBAR, VIRTIO_ID, QUEUES and CONFIG_SIZE, and includes this file.

# Protocol between device and QEMU: vhost-user or vfio-user.
TRANSPORT ?= vhost-user

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := test

cargo := cd $(RINGBAR) && guest-image/toolbox/cargo.sh
manifest := --manifest-path $(CURDIR)/Cargo.toml
programs := $(RINGBAR)/build/cargo/x86_64-unknown-linux-gnu/release
kbuild := $(RINGBAR)/guest-image/kernel/kbuild.sh
# What the toolbox shows of this host besides the usual folders.
export RINGBAR_BIND := $(CURDIR)

# Over vhost-user QEMU presents the function: the type and sizes are those of protocol.rs.
device = --program build/$(NAME)-device --transport $(TRANSPORT) \
    --virtio-id $(VIRTIO_ID) --queues $(QUEUES) --config-size $(CONFIG_SIZE)
card = $(programs)/ringbar-ci --setup $(RINGBAR)/build/setup.json card $(device)

.PHONY: test
test: build ## Unit tests, then the driver against the device in a virtual machine
	@$(cargo) test --release $(manifest)
	@$(card) --share build/guest --log-dir build/log \
	    'insmod /mnt/$(NAME).ko && /mnt/$(NAME)-test && rmmod $(NAME)'

.PHONY: build
build: ringbar ## Build device, driver and test program
	@$(MAKE) --no-print-directory -C $(RINGBAR) image
	@$(cargo) build --release $(manifest)
	@$(kbuild) stock $(CURDIR)/build/driver --module $(CURDIR)/driver modules
	@mkdir -p build/guest
	@cp $(programs)/$(NAME)-device build/
	@cp $(programs)/$(NAME)-test build/driver/$(NAME).ko build/guest/

.PHONY: lints
lints: ringbar ## Lints of device and driver
	@$(cargo) fmt $(manifest) --check
	@$(cargo) clippy $(manifest) --all-targets -- -D warnings
	@$(kbuild) stock $(CURDIR)/build/clippy --module $(CURDIR)/driver CLIPPY=1 KRUSTFLAGS=-Dwarnings KCFLAGS=-Werror modules

# By this link Cargo.toml and the driver's sources name the parts of Ringbar. Of other crates, the
# versions that Ringbar is tested with.
.PHONY: ringbar
ringbar:
	@ln -sfn $(RINGBAR) ringbar
	@[[ -e Cargo.lock ]] || cp ringbar/Cargo.lock .

.PHONY: clean
clean: ## Delete what was built here
	rm -rf build
