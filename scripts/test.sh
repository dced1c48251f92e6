#!/bin/sh
# The tests: with the race detector; the kills at failpoints; the binary with every DNS provider, linked once.
# CERTSYNC_TEST_FULL=1 runs the full figures.
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go}
tags=fewproviders
limit=15m
[ -z "${CERTSYNC_TEST_FULL:-}" ] || limit=60m

# Most of the tests fsync all the time: in memory they take a third of the time, where there is room.
tmp=
link=
log=$(mktemp)
cleanup() {
	[ -z "$link" ] || kill "$link" 2>/dev/null || :
	rm -rf "$log" ${tmp:+"$tmp"}
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Linking all providers takes minutes of CPU, and the tests wait more than they compute: side by side, at low priority.
printf 'test: the binary with every DNS provider, linked beside the tests\n'
nice -n 19 make build GO="$GO" >"$log" 2>&1 &
link=$!

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
$GO list -tags $tags ./... | grep -v '/e2e$' | xargs "$GO" test -race -tags $tags -timeout "$limit"

printf 'test: kill -9 at the failpoints of internal/haproxy\n'
$GO test -tags "$tags failpoint" -timeout "$limit" -run AKillAtAnyStep ./internal/haproxy

wait "$link" || {
	cat "$log"
	exit 1
}
link=
cat "$log"
./bin/certsync version

printf 'test: end to end\n'
$GO test -race -tags $tags -timeout 90m ./e2e
