#!/bin/sh
# The tests: with the race detector; the kills at failpoints; the binary with every DNS provider, linked once.
# CERTSYNC_TEST_FULL=1 runs the full figures.
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go}
tags=fewproviders

# Most of the tests fsync all the time: in memory they take a third of the time, where there is room.
tmp=
trap 'test -z "$tmp" || rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
if [ -z "${TMPDIR:-}" ] && [ -d /dev/shm ] && [ -w /dev/shm ]; then
	free=$(df -Pk /dev/shm | awk 'NR == 2 { print $4 }')
	if [ "$free" -gt 2097152 ]; then
		tmp=$(mktemp -d /dev/shm/ct.XXXXXX)
		chmod 711 "$tmp" # some tests run a child as another user
		export TMPDIR="$tmp"
	fi
fi

# The end-to-end tests have the machine to themselves: their hosts, clients and HAProxies are many processes.
printf 'test: with the race detector\n'
$GO list -tags $tags ./... | grep -v '/e2e$' | xargs "$GO" test -race -tags $tags -timeout 30m

printf 'test: end to end\n'
$GO test -race -tags $tags -timeout 60m ./e2e

printf 'test: kill -9 at the failpoints of internal/haproxy\n'
$GO test -tags "$tags failpoint" -timeout 15m -run AKillAtAnyStep ./internal/haproxy

printf 'test: the binary with every DNS provider, linked once\n'
make build
./bin/certsync version
