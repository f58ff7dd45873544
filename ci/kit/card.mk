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
device = --program build/$(NAME)-device --virtio-id $(VIRTIO_ID) --queues $(QUEUES) \
    --config-size $(CONFIG_SIZE)
# $(call run,KERNEL,FOLDER,TRANSPORT,OPTIONS,ARGUMENTS OF THE TEST): loads the driver in a guest with
# cards, and runs the test program. The guest has a copy, because the share does not survive a suspend.
run = $(programs)/ringbar-ci --setup $(RINGBAR)/build/$(1).json card $(device) --transport $(3) $(4) \
    --suspends --share build/$(2) --log-dir build/log \
    'cp -r /mnt /card && umount /mnt && cd /card && insmod ./$(NAME).ko && ./$(NAME)-test $(5) && rmmod $(NAME)'

# The first used entries of a card that lies, as its test expects them.
never := never,never,never,never
LIES ?= $(never),$(never),$(never),$(never),id,not-in-flight,index-ahead,length,twice

.PHONY: test
test: build ## Unit tests, then the driver against two cards in a virtual machine
	@$(cargo) test --release $(manifest)
	@$(call run,setup,guest,$(TRANSPORT),--cards 2)

.PHONY: test-all
test-all: test ## As test, and with a card that lies, behind an IOMMU, with bounce buffers, and on the debug kernel
	@echo '== a card that lies'
	@$(call run,setup,guest,vhost-user,--lies $(LIES),lies)
	@echo '== behind an IOMMU'
	@$(call run,setup,guest,vfio-user,--iommu intel-iommu)
	@echo '== with bounce buffers'
	@$(call run,setup,guest,vhost-user,--kernel-arg swiotlb=force)
	@echo '== on the debug kernel'
	@$(MAKE) --no-print-directory -C $(RINGBAR) debug
	@$(kbuild) debug $(CURDIR)/build/driver-debug --module $(CURDIR)/driver modules
	@mkdir -p build/guest-debug
	@cp $(programs)/$(NAME)-test build/driver-debug/$(NAME).ko build/guest-debug/
	@$(call run,setup-debug,guest-debug,$(TRANSPORT),--cards 2)

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
