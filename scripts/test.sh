#!/bin/sh
# The tests: with the race detector; the kills at failpoints; end to end; and beside them the FreeBSD builds and the binary
# with every DNS provider, linked once.
# CERTSYNC_TEST_FULL=1 runs the full figures.
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go}
tags=fewproviders
limit=15m
[ -z "${CERTSYNC_TEST_FULL:-}" ] || limit=60m

# Most of the tests fsync all the time: in memory they take a third of the time, where there is room.
tmp=
beside=
carp=
work=$(mktemp -d)
chmod 711 "$work" # some tests run a child as another user
log=$work/builds.log
cleanup() {
	for job in $beside $carp; do kill "$job" 2>/dev/null || :; done
	rm -rf "$work" ${tmp:+"$tmp"}
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Compiling for FreeBSD and linking all providers takes minutes of CPU, and the tests wait more than they compute: side by
# side, at low priority.
printf 'test: beside the tests: the FreeBSD builds, and the binary with every DNS provider, linked once\n'
builds() {
	nice -n 19 sh scripts/check.sh freebsd && nice -n 19 make build GO="$GO" || return 1
	[ -z "${CERTSYNC_TEST_FULL:-}" ] || nice -n 19 sh scripts/check.sh full
}
builds >"$log" 2>&1 &
beside=$!

if [ -z "${TMPDIR:-}" ] && [ -d /dev/shm ] && [ -w /dev/shm ]; then
	free=$(df -Pk /dev/shm | awk 'NR == 2 { print $4 }')
	if [ "$free" -gt 2097152 ]; then
		tmp=$(mktemp -d /dev/shm/ct.XXXXXX)
		chmod 711 "$tmp"
		export TMPDIR="$tmp"
	fi
fi

printf 'test: with the race detector\n'
# More at a time than there may be cores, since they wait, and the two longest first.
$GO list -tags $tags ./... | grep -v '/e2e$' |
	xargs "$GO" test -race -count=1 -tags $tags -timeout "$limit" -p 3 -parallel 4 ./internal/haproxy ./internal/distribute

printf 'test: kill -9 at the failpoints of internal/haproxy\n'
CGO_ENABLED=0 $GO test -trimpath -count=1 -tags "$tags failpoint" -timeout "$limit" -parallel 4 -run "AKill|Killed" ./internal/haproxy

# Where the race detector has room for some dozens of schedules, and for none of the mutants.
printf 'test: the simulation\n'
CGO_ENABLED=0 $GO test -trimpath -count=1 -tags $tags -timeout "$limit" -run 'Simulation' ./internal/reconcile

# The end-to-end tests come by themselves: their hosts, clients and HAProxies are many processes. Those of CARP mostly wait
# for a protocol's seconds, beside the others. What the race detector has no room for on two cores comes at the end,
# without it: thousands of certificates, and in full the whole load; in full, less of it is run with the detector too.
printf 'test: end to end\n'
large='Fleet|ManyPasses'
not_here="CARP|$large"
if [ -n "${CERTSYNC_TEST_FULL:-}" ]; then
	large="$large|UnderLoad"
	not_here=CARP
fi
$GO test -race -tags $tags -c -o "$work/e2e.test" ./e2e
e2e() {
	(cd e2e && exec "$work/e2e.test" -test.timeout 90m -test.parallel 3 "$@")
}
e2e -test.run CARP >"$work/carp.log" 2>&1 &
carp=$!
failed=
e2e -test.skip "$not_here" || failed=1
# Waited for in any case: it removes its hosts itself.
wait "$carp" || failed=1
carp=
cat "$work/carp.log"
[ -z "$failed" ] || exit 1

wait "$beside" || {
	cat "$log"
	exit 1
}
beside=
cat "$log"
./bin/certsync version

printf 'test: thousands of certificates, without the race detector\n'
[ -z "${CERTSYNC_TEST_FULL:-}" ] ||
	CGO_ENABLED=0 $GO test -trimpath -count=1 -tags $tags -timeout "$limit" -run ASecondPass ./internal/haproxy
CGO_ENABLED=0 $GO test -trimpath -count=1 -tags $tags -timeout 60m -v -run "$large" ./e2e
