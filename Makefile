# Entry points for people. The work is done by the scripts in guest-image/ and by
# the programs of the Cargo workspace.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: setup
setup:
	guest-image/setup.sh

# Kbuild decides itself what to make again.
.PHONY: driver
driver:
	guest-image/kbuild.sh build/driver modules
