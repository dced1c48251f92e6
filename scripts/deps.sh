#!/bin/sh
# deps.sh [WHAT...] installs what certsync's demo and tests need and this machine lacks. It is quiet, quick and needs
# no network when nothing is missing. WHAT is any of
#
#   haproxy      a HAProxy (Debian and Ubuntu: apt-get; FreeBSD: pkg)
#   sshd         OpenSSH's server, for the tests of the peer API
#   carp         ucarp and ip(8), for the tests with real CARP (Linux only)
#   lint         shellcheck, the linter that `make check` runs over the scripts
#   service      systemd-analyze, which judges the systemd unit (Linux only)
#   bench        what the benchmark compares with: uacme, nsupdate for its hook, and scp
#   haproxy-3.0  HAProxy 3.0 from Debian trixie, unpacked into the user's cache, not installed
#   haproxy-3.2  HAProxy 3.2 from Debian sid, likewise
#   all          haproxy, sshd, carp, lint, service, haproxy-3.0 and haproxy-3.2; the default
#
# The unpacked ones run as ${XDG_CACHE_HOME:-$HOME/.cache}/certsync/haproxy-3.0/haproxy, on any Debian, as any user.
# Their packages and libraries are pinned by the checksums in haproxy.sha256 beside this script; what the mirror no
# longer serves is replaced by the newest 3.0.x or 3.2.x that it does, which is said. `deps.sh --pin` writes that file.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
pins=$here/haproxy.sha256
cache=${XDG_CACHE_HOME:-$HOME/.cache}/certsync
os=$(uname -s)
tmp=
trap 'test -z "$tmp" || rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

say() { printf 'deps: %s\n' "$*" >&2; }
die() {
	say "error: $*"
	exit 1
}

has() { PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1; }

# as_root runs a command as root, and says how where this user may not become root without a password.
as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif has doas && doas -n true 2>/dev/null; then
		doas -n "$@"
	elif has sudo && sudo -n true 2>/dev/null; then
		sudo -n "$@"
	else
		die "not root; run this as root, then again: $*"
	fi
}

# quietly shows a command's output only where it failed.
quietly() {
	if out=$("$@" 2>&1); then
		return 0
	fi
	printf '%s\n' "$out" >&2
	return 1
}

# package COMMAND DEBIAN FREEBSD installs the package that brings COMMAND.
package() {
	! has "$1" || return 0
	case $os in
	Linux)
		has apt-get || die "$1 is missing, and this is not Debian or Ubuntu: install it by hand"
		say "installing $2"
		# The index may be stale or absent (fresh containers): only then is it fetched anew.
		quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$2" 2>/dev/null || {
			quietly as_root apt-get update -qq || die "apt-get update failed"
			quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$2" ||
				die "$2 could not be installed"
		}
		;;
	FreeBSD)
		say "installing $3"
		quietly as_root env ASSUME_ALWAYS_YES=yes pkg install -y "$3" || die "$3 could not be installed"
		;;
	*) die "$1 is missing, and $os is not known here: install it by hand" ;;
	esac
	has "$1" || die "$1 is still missing"
}

# mirror is the Debian mirror that this machine uses.
mirror() {
	# shellcheck disable=SC2016 # apt-get expands these itself
	uri=$(apt-get indextargets --format '$(REPO_URI)' 2>/dev/null | grep -E '/debian/?$' | head -n 1) || true
	printf '%s\n' "${uri:-http://deb.debian.org/debian}"
}

# apt runs apt-get in the world of $tmp: its own sources, lists and, so that every library is resolved, an empty dpkg
# status. Nothing of the machine's own state is read (but for proxies and the like) or changed.
apt() { apt-get -c "$tmp/apt.conf" "$@"; }

# world SUITE makes that world.
world() {
	mkdir -p "$tmp/lists/partial" "$tmp/archives/partial" "$tmp/none"
	: >"$tmp/status"
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror) $1 main" >"$tmp/sources.list"
	cat >"$tmp/apt.conf" <<-CONF
		Dir::Etc::sourcelist "$tmp/sources.list";
		Dir::Etc::sourceparts "$tmp/none";
		Dir::Etc::preferences "$tmp/none/preferences";
		Dir::Etc::preferencesparts "$tmp/none";
		Dir::State::lists "$tmp/lists";
		Dir::State::status "$tmp/status";
		Dir::Cache "$tmp";
		Dir::Cache::archives "$tmp/archives";
		APT::Install-Recommends "false";
		APT::Sandbox::User "root";
		APT::Update::Post-Invoke-Success "";
		APT::Update::Post-Invoke "";
		Acquire::Languages "none";
		Acquire::Retries "3";
		Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
		Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
	CONF
	quietly apt update -qq
}

# resolve lists haproxy and every package that it needs, as name=version.
resolve() {
	apt install -s -qq haproxy | sed -n 's/^Inst \([^ ]*\) (\([^ ]*\) .*/\1=\2/p'
}

# check BRANCH holds each downloaded package against its pin. A package of a pinned name with another content is an
# error; one that is not pinned came with Debian's signature, and is told.
check() {
	unpinned=
	for deb in "$tmp"/debs/*.deb; do
		name=$(basename "$deb")
		want=$(awk -v b="$1" -v n="$name" '$1 == b && $3 == n { print $2 }' "$pins")
		have=$(sha256sum "$deb" | cut -d ' ' -f 1)
		if [ -z "$want" ]; then
			unpinned="$unpinned $name"
		elif [ "$want" != "$have" ]; then
			die "$name has the checksum $have, but is pinned as $want"
		fi
	done
	[ -z "$unpinned" ] || say "HAProxy $1: the pins are not served any more; newest taken, on Debian's signature alone:$unpinned"
}

# fetch BRANCH SUITE downloads haproxy and its libraries into $tmp/debs. Fails where the suite has another branch.
fetch() {
	world "$2" || return 1
	resolve >"$tmp/packages" || return 1
	grep -q "^haproxy=$1\." "$tmp/packages" || {
		say "$2 serves $(grep '^haproxy=' "$tmp/packages" || echo 'no haproxy'), not $1"
		return 1
	}
	mkdir "$tmp/debs"
	# shellcheck disable=SC2046 # one argument for each package
	(cd "$tmp/debs" && quietly apt download -qq $(cat "$tmp/packages"))
}

# wrapper DIR writes DIR/haproxy. HAProxy runs itself again by argv[0] (master-worker), so that is the wrapper's path.
wrapper() {
	cat >"$1/haproxy" <<-'SH'
		#!/bin/sh
		d=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
		for ld in "$d"/root/usr/lib64/ld-linux-*.so.* "$d"/root/lib64/ld-linux-*.so.* "$d"/root/usr/lib/ld-linux-*.so.* "$d"/root/lib/ld-linux-*.so.*; do
			[ ! -x "$ld" ] || break
		done
		libs=
		for l in "$d"/root/usr/lib/*-linux-gnu "$d"/root/lib/*-linux-gnu; do
			[ ! -d "$l" ] || libs=$libs${libs:+:}$l
		done
		exec "$ld" --argv0 "$d/haproxy" --library-path "$libs" "$d/root/usr/sbin/haproxy" "$@"
	SH
	chmod 755 "$1/haproxy"
}

# unpacked BRANCH SUITE... puts HAProxy BRANCH into the cache, from the first suite that serves it.
unpacked() {
	branch=$1 dest=$cache/haproxy-$1
	shift
	[ ! -x "$dest/haproxy" ] || return 0
	if [ "$os" != Linux ] || ! has apt-get; then
		say "HAProxy $branch: left out, only Debian's apt-get can fetch it"
		return 0
	fi
	[ -r /usr/share/keyrings/debian-archive-keyring.gpg ] || die "install debian-archive-keyring first"
	mkdir -p "$cache"
	for suite; do
		# In the cache's own file system, so that the last step is a rename.
		tmp=$(mktemp -d "$cache/.tmp.XXXXXX")
		say "HAProxy $branch: downloading from Debian $suite"
		if fetch "$branch" "$suite"; then
			install_unpacked "$branch" "$dest"
			return 0
		fi
		rm -rf "$tmp"
		tmp=
	done
	die "HAProxy $branch could not be had from $*"
}

install_unpacked() {
	check "$1"
	mkdir -p "$tmp/new/root"
	for deb in "$tmp"/debs/*.deb; do
		dpkg -x "$deb" "$tmp/new/root"
	done
	wrapper "$tmp/new"
	"$tmp/new/haproxy" -v | grep -q "version $1\." || die "HAProxy $1 does not start"
	# A rename does not replace a folder with files in it: of two runs at once the first one's stays.
	mv -T "$tmp/new" "$2" 2>/dev/null || [ -x "$2/haproxy" ] || die "cannot rename to $2"
	rm -rf "$tmp"
	tmp=
}

# pin writes the checksums of what Debian serves now.
pin() {
	: >"$pins.new"
	for pair in 3.0:trixie 3.2:sid; do
		tmp=$(mktemp -d)
		fetch "${pair%:*}" "${pair#*:}" || die "nothing to pin for ${pair%:*}"
		(cd "$tmp/debs" && sha256sum -- *.deb) | awk -v b="${pair%:*}" '{ print b, $1, $2 }' >>"$pins.new"
		rm -rf "$tmp"
		tmp=
	done
	mv "$pins.new" "$pins"
}

want() {
	case $1 in
	haproxy) package haproxy haproxy haproxy ;;
	sshd) package sshd openssh-server openssh-portable ;;
	carp)
		# FreeBSD has CARP itself, and its tests need hosts of their own.
		[ "$os" != Linux ] || {
			package ucarp ucarp ucarp
			package ip iproute2 iproute2
		}
		;;
	lint) package shellcheck shellcheck hs-ShellCheck ;;
	service) [ "$os" != Linux ] || package systemd-analyze systemd systemd ;;
	bench)
		package haproxy haproxy haproxy
		package sshd openssh-server openssh-portable
		package scp openssh-client openssh-portable
		package uacme uacme uacme
		package nsupdate bind9-dnsutils bind-tools
		;;
	haproxy-3.0) unpacked 3.0 trixie ;;
	haproxy-3.2) unpacked 3.2 sid forky ;;
	all) for what in haproxy sshd carp lint service haproxy-3.0 haproxy-3.2; do want "$what"; done ;;
	--pin) pin ;;
	*) die "what is $1? One of: haproxy sshd carp lint service bench haproxy-3.0 haproxy-3.2 all" ;;
	esac
}

[ $# -gt 0 ] || set -- all
for arg; do
	want "$arg"
done
