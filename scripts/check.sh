#!/bin/sh
# Format, vet, staticcheck and cross-builds: check.sh [PART], where PART is
#
#   host     format, vet, staticcheck and shellcheck on this system
#   freebsd  build and vet for FreeBSD on amd64 and arm64, without the package of all DNS providers
#   full     build the whole for FreeBSD, with all DNS providers
#   all      host and freebsd; the default
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go}
tags=fewproviders
# As the binary is built, so that one compilation of the dependencies serves both.
export CGO_ENABLED=0 GOFLAGS="${GOFLAGS:-} -trimpath"

say() { printf '%s\n' "check: $*"; }

host() {
	bad=$(gofmt -l .)
	if [ -n "$bad" ]; then
		say "gofmt would change: $bad"
		exit 1
	fi
	say "vet"
	$GO vet -tags $tags ./...
	$GO vet -tags "$tags failpoint" ./internal/failpoint
	say "staticcheck"
	$GO tool staticcheck -tags $tags ./...
	if command -v shellcheck >/dev/null 2>&1; then
		say "shellcheck"
		shellcheck scripts/*.sh .ci/run
		shellcheck -s sh configs/rc.d/certsync
	fi
}

freebsd() {
	for arch in amd64 arm64; do
		say "freebsd/$arch"
		GOOS=freebsd GOARCH=$arch $GO build -tags $tags -o /dev/null ./cmd/certsync
		GOOS=freebsd GOARCH=$arch $GO vet -tags $tags ./...
	done
}

full() {
	for arch in amd64 arm64; do
		say "freebsd/$arch, all providers"
		GOOS=freebsd GOARCH=$arch $GO build -o /dev/null ./cmd/certsync
	done
}

case ${1:-all} in
host | freebsd | full) "$1" ;;
all)
	host
	freebsd
	;;
*)
	say "what is $1? One of: host freebsd full all"
	exit 2
	;;
esac
