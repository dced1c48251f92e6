#!/bin/sh
# Format, vet, staticcheck and cross-builds. `check.sh full` builds the whole for FreeBSD, with all DNS providers.
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go}
tags=fewproviders

say() { printf '%s\n' "check: $*"; }

bad=$(gofmt -l .)
if [ -n "$bad" ]; then
	say "gofmt would change: $bad"
	exit 1
fi

if [ "${1:-}" = full ]; then
	for arch in amd64 arm64; do
		say "freebsd/$arch, all providers"
		CGO_ENABLED=0 GOOS=freebsd GOARCH=$arch $GO build -o /dev/null ./cmd/certsync
	done
	exit 0
fi

say "vet"
$GO vet -tags $tags ./...
$GO vet -tags "$tags failpoint" ./internal/failpoint
say "staticcheck"
$GO tool staticcheck -tags $tags ./...
for arch in amd64 arm64; do
	say "freebsd/$arch"
	CGO_ENABLED=0 GOOS=freebsd GOARCH=$arch $GO build -tags $tags -o /dev/null ./cmd/certsync
	CGO_ENABLED=0 GOOS=freebsd GOARCH=$arch $GO vet -tags $tags ./...
done
if command -v shellcheck >/dev/null 2>&1; then
	say "shellcheck"
	shellcheck scripts/*.sh .ci/run
fi
