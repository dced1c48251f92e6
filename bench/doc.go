// Command bench compares `certsync issue` with what a user would write instead: an ACME client, scp of the bundle to the
// peer, and a reload of HAProxy on both hosts. Each contender has a lab of its own (two HAProxies, OpenSSH's sshd, an
// embedded Pebble without sleeps, a DNS server for RFC 2136) and gets one certificate for an apex and its wildcard with
// an ec256 key, measured from its start until a fresh handshake with each node shows the new leaf. The contenders take
// turns within a round, so that what disturbs the machine disturbs all of them; the medians over the rounds are printed.
//
//	go run ./bench -rounds 20 -lego $HOME/go/bin/lego
//
// It needs root on Linux: uacme, which can be given no CA file, gets one by a mount namespace of its own. What is not
// installed is left out and said to be: uacme, nsupdate, sshd and scp come from Debian's packages uacme, bind9-dnsutils,
// openssh-server and openssh-client; lego's command is built by
// `go install github.com/go-acme/lego/v4/cmd/lego@v4.35.2`.
//
// The comparison leans towards the others: their scripts check nothing, undo nothing, and their reloads are started by
// the benchmark itself (an idle ssh session stands for the command that would start the peer's).
package main
