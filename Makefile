# certsync: what a fresh machine needs besides Go is `make demo` and `make test`. Works with GNU and BSD make.

GO ?= go
VERSION ?= 0.1.0
# The binary with all of lego's DNS providers takes minutes to link the first time; the tests use two providers.
FEW = fewproviders
LDFLAGS = -s -w -X main.version=$(VERSION)

all: build

# bin/certsync: one static binary with every DNS provider.
build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/certsync ./cmd/certsync

deps:
	sh scripts/deps.sh

# demo: the lab, narrated; a minute, and nothing left behind.
demo:
	sh scripts/deps.sh haproxy
	$(GO) run -tags $(FEW) ./demo

# check: format, vet, staticcheck, and the FreeBSD builds without the package of all providers.
check:
	sh scripts/check.sh

# test: everything that CI runs.
test:
	sh scripts/deps.sh
	sh scripts/check.sh host
	sh scripts/test.sh

# test-full: the same with the issues' full figures, and FreeBSD builds of the whole.
test-full:
	sh scripts/deps.sh
	sh scripts/check.sh host
	CERTSYNC_TEST_FULL=1 sh scripts/test.sh

bench:
	sh scripts/deps.sh bench
	$(GO) run -tags $(FEW) ./bench

clean:
	rm -rf bin

.PHONY: all build deps demo check test test-full bench clean
