# edgeway: build, test, demo, install. `make help` lists the targets.

GO          ?= go
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT      ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
LDFLAGS      = -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)
GOBUILD      = CGO_ENABLED=0 $(GO) build -trimpath -ldflags "$(LDFLAGS)"
STATICCHECK  = $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2
DESTDIR     ?=
PREFIX      ?= /usr/local

.PHONY: help build cross test test-tools test-k8s test-yurt test-kubeedge test-vm e2e e2e-kubeadm e2e-upstream check drill peace upgrade e2e-upgrade demo demo-shell demo-down bench image packages test-packages install uninstall clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## bin/edgeway, bin/edgewayd, bin/edgeway-controller and bin/eni-tool, static
	$(GOBUILD) -o bin/edgeway ./plugin/edgeway
	$(GOBUILD) -o bin/edgewayd ./daemon/edgewayd
	$(GOBUILD) -o bin/edgeway-controller ./daemon/controller/edgeway-controller
	$(GOBUILD) -o bin/eni-tool ./daemon/cloud/eni-tool

cross: ## all programs for amd64 and arm64 in dist/; eni-tool also for darwin
	for arch in amd64 arm64; do \
	  GOARCH=$$arch $(GOBUILD) -o dist/$$arch/edgeway ./plugin/edgeway && \
	  GOARCH=$$arch $(GOBUILD) -o dist/$$arch/edgewayd ./daemon/edgewayd && \
	  GOARCH=$$arch $(GOBUILD) -o dist/$$arch/edgeway-controller ./daemon/controller/edgeway-controller || exit 1; \
	  for os in linux darwin; do GOOS=$$os GOARCH=$$arch $(GOBUILD) -o dist/eni-tool-$$os-$$arch ./daemon/cloud/eni-tool || exit 1; done; \
	done

image: cross ## container images, dist/edgeway-VERSION-ARCH.tar and dist/edgeway-controller-...; no registry, no container tool
	for arch in amd64 arm64; do for name in edgeway edgeway-controller; do \
	  $(GO) run ./scripts/package -name $$name -version $(VERSION) -arch $$arch -bin dist/$$arch -out dist/$$name-$(VERSION)-$$arch.tar || exit 1; \
	done; done

packages: cross ## Debian and RPM packages for both, dist/*.deb and dist/*.rpm
	VERSION=$(VERSION) scripts/package/packages.sh

test-packages: test-tools ## install, upgrade and remove the packages on a machine with systemd; check the manifests (root)
	EDGEWAY_PACKAGES=1 $(GO) test -count=1 -timeout 30m ./scripts/package

check: ## format, vet, staticcheck, tests that need no root
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "not gofmt-ed: $$unformatted" >&2; exit 1; }
	$(GO) vet ./...
	$(STATICCHECK) ./...
	$(GO) test -short ./...

test-tools: ## install what the tests need and this machine lacks
	scripts/install-test-tools.sh

test: test-tools build cross check ## everything but test-k8s: also kernel and LAN tests (root)
	EDGEWAY_KUBE=skip $(GO) test -count=1 -p 1 -timeout 20m ./...

test-k8s: test-tools build ## tests against a real API server; the first time builds it: 15 minutes of CPU (root)
	scripts/kube/build.sh etcd kube-apiserver kube-controller-manager kubectl kube-proxy flanneld
	EDGEWAY_KUBE=required $(GO) test -count=1 -p 1 -timeout 20m -run TestAPIServer ./daemon/... ./scripts/...

YURTHUB ?=
test-yurt: test-tools ## a node behind OpenYurt's yurthub whose cloud is away: YURTHUB=/path/of/yurthub, 1.7.0 or newer; a minute (root)
	@test -x "$(YURTHUB)" || { echo "YURTHUB=/path/of/yurthub is missing: this repository does not build it" >&2; exit 1; }
	scripts/kube/build.sh etcd kube-apiserver kubectl
	EDGEWAY_KUBE=required EDGEWAY_YURTHUB=$(YURTHUB) $(GO) test -count=1 -v -run TestYurthub ./daemon/cluster

EDGECORE ?=
CLOUDCORE ?=
test-kubeedge: test-tools ## a node whose kubeconfig names KubeEdge's metaserver: EDGECORE=/path/of/edgecore CLOUDCORE=/path/of/cloudcore, 1.23.1 or newer; a minute (root)
	@test -x "$(EDGECORE)" -a -x "$(CLOUDCORE)" || { echo "EDGECORE=/path/of/edgecore or CLOUDCORE=/path/of/cloudcore is missing: this repository does not build them" >&2; exit 1; }
	scripts/kube/build.sh etcd kube-apiserver kubectl
	EDGEWAY_KUBE=required EDGEWAY_EDGECORE=$(EDGECORE) EDGEWAY_CLOUDCORE=$(CLOUDCORE) $(GO) test -count=1 -v -run TestKubeEdge ./daemon/cluster

test-vm: test-tools ## tests that need modules of the kernel (8021q): on Debian's kernel, in qemu; two minutes (root)
	scripts/vm/vm.sh

e2e: test-tools build ## a shop's day on three real kubelets: outages, a power cut, an upgrade; ten minutes once built (root)
	scripts/kube/build.sh
	$(GO) run ./scripts/e2e
	$(GO) run ./scripts/e2e -install daemonset

e2e-kubeadm: test-tools build ## the page "getting started" with a real kubeadm on three machines; ten minutes once built (root)
	scripts/kube/build.sh
	scripts/kube/build.sh kubeadm etcd-3.6 coredns
	EDGEWAY_KUBEADM=1 $(GO) test -count=1 -v -timeout 40m -run TestGettingStartedKubeadm ./scripts/lab

MODES ?= underlay,overlay,mixed
e2e-upstream: test-tools build ## Kubernetes' own network tests in each mode, into docs/conformance.md; hours (MODES=overlay: one mode; root)
	scripts/kube/build.sh
	scripts/kube/build.sh e2e.test ginkgo agnhost regression-issue-74839 coredns netpol
	$(GO) run ./scripts/e2e -upstream $(MODES)

drill: test-tools build ## inject the faults of docs/drill.md into one laboratory, and check what edgeway says; five minutes (root)
	EDGEWAY_DRILL=1 $(GO) test -count=1 -v -timeout 30m -run TestDrill ./scripts/lab

PEACE ?= 60m
peace: test-tools build ## nodes without a fault for an hour (PEACE=60m): any problem fails (root)
	EDGEWAY_PEACE=$(PEACE) $(GO) test -count=1 -v -timeout 0 -run TestPeace ./scripts/lab

FROM ?= HEAD~100
upgrade: test-tools build ## from the programs of the commit FROM to these and back under traffic; STORY=forward: only there; two minutes (root)
	scripts/earlier.sh $(FROM) $(GO) test -count=1 -v -timeout 10m -run 'TestUpgrade/$(STORY)' ./scripts/lab

e2e-upgrade: test-tools build ## the same with the DaemonSet on three real kubelets; ten minutes once built (root)
	scripts/kube/build.sh
	scripts/earlier.sh $(FROM) sh -c '$(GO) run ./scripts/e2e -install daemonset -from $$EDGEWAY_EARLIER'

FLEET ?= 10,500,5000,20000
fleet: test-tools build ## what a cluster of FLEET=10,500,5000,20000 nodes costs a node, at a real API server; an hour (root)
	scripts/kube/build.sh etcd kube-apiserver kubectl
	EDGEWAY_KUBE=required EDGEWAY_FLEET=$(FLEET) $(GO) test -count=1 -v -timeout 0 -run TestFleet ./scripts/lab

demo: test-tools build ## the main job, on real network namespaces with real switches (root)
	$(GO) run ./scripts/demo

demo-shell: test-tools build ## the same, and the lab is left standing to look around
	$(GO) run ./scripts/demo -keep

demo-down: ## take down what demo-shell left standing
	$(GO) run ./scripts/demo -down

bench: test-tools build ## side by side with the peers: store, pods, routes, BGP (root; BENCH=-quick for a short one)
	$(GO) run ./scripts/bench -plot bin/pods.svg -flame bin/add.svg $(BENCH)

install: build ## plugin and daemon, the systemd unit, an example configuration
	DESTDIR=$(DESTDIR) PREFIX=$(PREFIX) scripts/install.sh

uninstall: ## remove what install put there; leases and configuration stay
	DESTDIR=$(DESTDIR) PREFIX=$(PREFIX) scripts/uninstall.sh

clean:
	rm -rf bin dist
