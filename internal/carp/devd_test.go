package carp

import (
	"bytes"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

func TestDevdsPacketsAreToldApart(t *testing.T) {
	vlan := Spec{Interface: "em0.10", VHID: 7}
	for _, c := range []struct {
		packet string
		of     Spec
		want   notice
	}{
		{"!system=CARP subsystem=1@em0 type=MASTER\n", testSpecs[0], moved},
		{"!system=CARP subsystem=1@em0 type=BACKUP\n", testSpecs[0], moved},
		{"!system=CARP subsystem=1@em0 type=INIT\n", testSpecs[0], moved},
		{"!system=CARP subsystem=7@em0.10 type=MASTER\n", vlan, moved},
		{"!system=CARP subsystem=7@em0.100 type=MASTER\n", vlan, wake},
		{"!system=CARP subsystem=11@em0 type=MASTER\n", testSpecs[0], wake},
		{"!system=CARP subsystem=1@em01 type=MASTER\n", testSpecs[0], wake},
		{"!system=CARP subsystem=1@em1 type=MASTER\n", testSpecs[0], wake},
		{"!system=CARP type=MASTER subsystem=1@em0\n", testSpecs[0], wake}, // an order that no devd has
		{"!system=CARP \n", testSpecs[0], wake},
		{"!system=CARP subsystem=1@em0 type=MAS", testSpecs[0], wake}, // cut
		{"!system=IFNET su", testSpecs[0], wake},                      // cut
		{"", testSpecs[0], wake},
		{"!system=CARPS subsystem=1@em0 type=MASTER\n", testSpecs[0], ignored},
		{"!system=IFNET subsystem=em0 type=LINK_DOWN\n", testSpecs[0], ignored},
		{"!system=USB !system=CARP subsystem=1@em0 type=MASTER\n", testSpecs[0], ignored},
		{" !system=CARP subsystem=1@em0 type=MASTER\n", testSpecs[0], ignored},
		{"+carp0 at bus0\n", testSpecs[0], ignored},
		{"\n", testSpecs[0], ignored},
	} {
		if got := devdSays([]byte(c.packet), c.of); got != c.want {
			t.Errorf("%q: %d, want %d", c.packet, got, c.want)
		}
	}
}

var recordedPacket = regexp.MustCompile(`packet n=(\d+) hex=([0-9a-f]+) text=`)

func TestRecordedDevdPacketsWakeWhenTheyAreCARPs(t *testing.T) {
	counts := map[notice]int{}
	for _, v := range vectors(t, "devd-*.txt") {
		for _, line := range v.Lines {
			m := recordedPacket.FindStringSubmatch(line.Value + line.Key)
			if m == nil {
				continue
			}
			packet := vectorBytes(t, m[2])
			if len(packet) > 1023 || strconv.Itoa(len(packet)) != m[1] {
				t.Fatalf("%v: a packet of %d bytes, not %s", v, len(packet), m[1])
			}
			want := ignored
			if strings.Contains(string(packet), "system=CARP") {
				want = wake
				if strings.Contains(string(packet), "=1@vtnet0 ") {
					want = moved
				}
			}
			if got := devdSays(packet, Spec{Interface: "vtnet0", VHID: 1}); got != want {
				t.Errorf("%v: %q: %d, want %d", v, packet, got, want)
			}
			counts[want]++
		}
	}
	if counts[moved] < 9 || counts[wake] < 9 || counts[ignored] < 9 {
		t.Errorf("only %v packets were recorded", counts)
	}
}

func FuzzDevdSays(f *testing.F) {
	for _, seed := range []string{"!system=CARP subsystem=1@em0 type=MASTER\n", "!system=IFNET subsystem=em0 type=LINK_UP\n", "!system=IFNET su", "", "\n", "!system=CARP \n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		said := devdSays(packet, testSpecs[0])
		if !bytes.HasSuffix(packet, []byte("\n")) && said != wake {
			t.Errorf("a cut packet: %d", said)
		}
		if said == moved && !bytes.Contains(packet, []byte("1@em0 ")) {
			t.Errorf("%q is a move of 1@em0", packet)
		}
	})
}
