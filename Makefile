# Bulkhead: `make help` lists every target.
SHELL      := /bin/bash
.DEFAULT_GOAL := help
export PATH := $(PATH):/usr/local/go/bin:/usr/sbin:/sbin

BUILD      := build
BIN        := $(BUILD)/bin
GUEST      := $(BUILD)/guest
VERSION    := $(shell git describe --always --dirty 2>/dev/null || echo unversioned)
LDFLAGS    := -s -w -X bulkhead/bus/version.Commit=$(VERSION)
CACHE      := $(or $(BULKHEAD_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/bulkhead)
# No VCS stamp: the commit is given by the linker, and a clone owned by another user still builds.
export GOFLAGS := -buildvcs=false
TOOLS      := $(CACHE)/tools
GO         := go

GOLANGCI_VERSION := v2.15.0
NATSCLI_VERSION  := v0.5.1
CRICTL_VERSION   := v1.34.0
PROTOC_GEN_GO    := v1.36.12
RUNSC_VERSION    := v0.0.0-20260905035102-160fafc42237
GOLANGCI   := $(TOOLS)/golangci-lint-$(GOLANGCI_VERSION)
NATSCLI    := $(TOOLS)/nats-$(NATSCLI_VERSION)/nats
CRICTL     := $(TOOLS)/crictl-$(CRICTL_VERSION)/crictl
RUNSC      := $(TOOLS)/runsc-$(RUNSC_VERSION)/runsc

# Every Go file and module file: a binary is rebuilt only when one of them changed.
GOSRC      := go.mod go.sum $(shell find agent bus ksm-worker proto runtime-frontend services vm-worker -name '*.go' -o -name '*.example' 2>/dev/null)

# How many failed tests are asked a second time, by themselves: AGAIN= for none (test/verdict says what it is for).
AGAIN      ?= 3

PRELOAD    := $(BIN)/bulkhead-qemu-special-files.so
ZYGOTE     := $(BIN)/bulkhead-qemu-zygote.so
HOSTBINS   := $(BIN)/bulkheadd $(BIN)/bulkhead $(BIN)/bulkhead-vm-worker $(BIN)/bulkhead-network $(BIN)/bulkhead-ksm-worker
AGENTBINS  := $(BIN)/bulkhead-agent $(BIN)/bulkhead-init

##@ The two commands

.PHONY: demo
demo: packages build guest ## run a busybox container in a VM and show what happened
	@$(GO) run ./deploy/demo $(BUILD)

.PHONY: test
test: packages lint unit e2e conformance ## lint, unit tests, end-to-end tests with real VMs and Docker, and conformance

##@ Build

.PHONY: build
build: $(HOSTBINS) $(BIN)/bulkhead-relay $(AGENTBINS) $(PRELOAD) $(ZYGOTE) ## every binary, into build/bin

.PHONY: packages
packages: toolchain ## install the Debian packages the build, the VMs and the tests need
	@deploy/packages/install

# Any Go from 1.21 on fetches the version that go.mod names by itself.
.PHONY: toolchain
toolchain:
	@command -v $(GO) >/dev/null || { echo "Go is not installed (Debian 12's is too old): unpack Go 1.26 from https://go.dev/dl/ into /usr/local/go, then run make again" >&2; exit 1; }

.PHONY: guest
guest: $(GUEST)/image.ext4 $(GUEST)/vmlinux ## the guest kernel and image, into build/guest

$(BIN)/bulkheadd: PKG := ./services/host/cmd/bulkheadd
$(BIN)/bulkhead: PKG := ./runtime-frontend/cmd/bulkhead
$(BIN)/bulkhead-vm-worker: PKG := ./vm-worker/cmd/bulkhead-vm-worker
$(BIN)/bulkhead-network: PKG := ./services/network/cmd/bulkhead-network
$(BIN)/bulkhead-ksm-worker: PKG := ./ksm-worker/cmd/bulkhead-ksm-worker
$(HOSTBINS): $(GOSRC)
	@echo "building $@"
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ $(PKG)

# The relay links neither NATS nor protobuf; its size is a promise (docs/performance.md).
$(BIN)/bulkhead-relay: $(GOSRC)
	@echo "building $@"
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $@ ./runtime-frontend/cmd/bulkhead-relay

# The agent, and the init of its containers, need cgo for libcontainer's nsenter and libseccomp, and are static: the guest holds
# nothing else. Their segments are whole huge pages (huge.ld); Go's cache does not see that file, so what the linker has made by
# it is known by its sum.
AGENT_LAYOUT := agent/cmd/huge.ld
$(AGENTBINS): $(GOSRC) $(AGENT_LAYOUT)
	@echo "building $@"
	@CGO_ENABLED=1 $(GO) build -trimpath -tags 'netgo osusergo seccomp runc_nocriu' -ldflags '-s -w -linkmode external -extldflags "-static -Wl,-z,max-page-size=0x200000,-z,separate-code,-T,$(abspath $(AGENT_LAYOUT)),--defsym=bulkhead_layout=0x$(shell sha256sum $(AGENT_LAYOUT) | head -c 8)"' -o $@ ./agent/cmd/$(@F)

# What QEMU lacks; the sources say why.
$(PRELOAD): $(wildcard vm-worker/hypervisor/qemu/preload/*.c)
	@echo "building $@"
	@mkdir -p $(BIN) && gcc -std=gnu11 -Wall -Wextra -Werror -O2 -fPIC -shared -Wl,-z,relro,-z,now -s -o $@ $^

# For VMs under TCG; the header says what it is.
$(ZYGOTE): $(wildcard vm-worker/hypervisor/qemu/preload/zygote/*.[ch])
	@echo "building $@"
	@mkdir -p $(BIN) && gcc -std=gnu11 -Wall -Wextra -Werror -O2 -fPIC -shared -Wl,-z,relro,-z,now -s -o $@ $(filter %.c,$^)

$(GUEST)/vmlinux: deploy/guest/build-kernel deploy/guest/kernel.config $(wildcard deploy/guest/patches/*.patch)
	@deploy/guest/build-kernel $(GUEST)

$(GUEST)/image.ext4: $(AGENTBINS) deploy/guest/build-image $(wildcard deploy/guest/selinux/*.cil)
	@deploy/guest/build-image $(BIN)/bulkhead-agent $(GUEST) $(BIN)/bulkhead-init

.PHONY: proto
proto: ## regenerate the Go code of proto/ (needs protobuf-compiler and libprotobuf-dev)
	@GOBIN=$(abspath $(TOOLS)) $(GO) install google.golang.org/protobuf/cmd/protoc-gen-go@$(PROTOC_GEN_GO)
	@for f in proto/*/v1/*.proto; do PATH=$(TOOLS):$$PATH protoc -I proto --go_out=. --go_opt=module=bulkhead $$f || exit 1; done

##@ Run from the tree

.PHONY: up
up: build guest ## start a daemon from the tree, in the background
	@$(GO) run ./deploy/dev up $(BUILD)

.PHONY: down
down: ## stop the daemon that make up started, and its VMs
	@$(GO) run ./deploy/dev down $(BUILD)

##@ Check

.PHONY: fmt
fmt: ## format every Go file
	@gofmt -w $$(git ls-files '*.go' ':!*.pb.go')

.PHONY: lint
lint: $(GOLANGCI) ## formatting, vet, golangci-lint, import directions, generated code
	@test/lint/run $(GOLANGCI)

.PHONY: unit
unit: build guest $(NATSCLI) ## unit and room tests (real bus, real QEMU where a room needs it)
	@BULKHEAD_BUILD=$(abspath $(BUILD)) BULKHEAD_NATS_CLI=$(NATSCLI) $(GO) run ./test/verdict $(addprefix -again ,$(AGAIN)) -- -timeout 20m -tags 'netgo osusergo seccomp runc_nocriu' -- $$($(GO) list ./... | grep -v 'bulkhead/test/\(e2e\|lint\)')

.PHONY: e2e
e2e: build guest $(NATSCLI) ## end-to-end tests: Docker, faults, the nats CLI, one service alone
	@BULKHEAD_BUILD=$(abspath $(BUILD)) BULKHEAD_NATS_CLI=$(NATSCLI) $(GO) run ./test/verdict -v $(addprefix -again ,$(AGAIN)) -- -count=1 -timeout 40m -- ./test/e2e

.PHONY: conformance
conformance: build guest $(BUILD)/conformance/probe $(CRICTL) ## the conformance suite, Bulkhead and runc side by side; UPDATE=1 writes docs/conformance.md
	@BULKHEAD_BUILD=$(abspath $(BUILD)) BULKHEAD_CRICTL=$(CRICTL) $(GO) run ./test/conformance/cmd/conformance -out $(BUILD)/conformance.json -page docs/conformance.md $(if $(UPDATE),-update)

.PHONY: debian
debian: build guest $(NATSCLI) ## on a Debian 12 host as users have one, in a VM: systemd, cgroup v2, KVM (a quarter of an hour; needs debootstrap)
	@BULKHEAD_NATS_CLI=$(NATSCLI) test/debian/run $(BUILD)

$(BUILD)/conformance/probe: $(shell find test/conformance/probe test/conformance/cmd/conformance-probe -name '*.go')
	@mkdir -p $(@D) && CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $@ ./test/conformance/cmd/conformance-probe

.PHONY: bench
bench: build guest runsc ## the benchmark table, with runc and gVisor beside it; writes build/bench.json and build/bench.svg
	@BULKHEAD_BUILD=$(abspath $(BUILD)) BULKHEAD_RUNSC=$(RUNSC) $(GO) run ./test/bench -out $(BUILD)/bench.json -chart $(BUILD)/bench.svg $(and $(LIVE),-live $(LIVE))

.PHONY: bench-live
bench-live: build guest ## how many VMs live at once, each answering exec; LIVE=500 (minutes)
	@BULKHEAD_BUILD=$(abspath $(BUILD)) $(GO) run ./test/bench -only '^(vms_live|live_)' -live $(or $(LIVE),500) -out $(BUILD)/bench-live.json

# gVisor's runtime is what Bulkhead is compared with, and no part of it: without it the benchmark says so.
.PHONY: runsc
runsc:
	@[ -x $(RUNSC) ] || { echo "building gVisor's runsc $(RUNSC_VERSION) (once, kept in $(TOOLS))"; mkdir -p $(dir $(RUNSC)); \
	  GOBIN=$(dir $(RUNSC)) CGO_ENABLED=0 $(GO) install -trimpath -ldflags '-s -w' gvisor.dev/gvisor/runsc@$(RUNSC_VERSION) || echo "runsc could not be built; the benchmark leaves it out"; }

.PHONY: bench-net
bench-net: build guest ## the network of a VM container against runc's, per model; writes build/bench-net.json
	@BULKHEAD_BUILD=$(abspath $(BUILD)) $(GO) run ./test/netbench -out $(BUILD)/bench-net.json

$(GOLANGCI):
	@echo "building golangci-lint $(GOLANGCI_VERSION) (once, kept in $(TOOLS))"
	@mkdir -p $(TOOLS)/.golangci && GOBIN=$(TOOLS)/.golangci $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION) && mv $(TOOLS)/.golangci/golangci-lint $@

$(NATSCLI):
	@echo "building the nats CLI $(NATSCLI_VERSION) (once, kept in $(TOOLS))"
	@mkdir -p $(dir $@) && GOBIN=$(dir $@) $(GO) install github.com/nats-io/natscli/nats@$(NATSCLI_VERSION)

$(CRICTL):
	@echo "building crictl $(CRICTL_VERSION) (once, kept in $(TOOLS))"
	@mkdir -p $(dir $@) && GOBIN=$(dir $@) $(GO) install -trimpath -ldflags '-s -w' sigs.k8s.io/cri-tools/cmd/crictl@$(CRICTL_VERSION)

##@ Housekeeping

.PHONY: clean
clean: ## remove build/ (the kernel and the tools stay in the cache)
	@rm -rf $(BUILD)

.PHONY: help
help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-zA-Z0-9_-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
