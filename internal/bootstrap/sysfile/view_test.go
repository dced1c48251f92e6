package sysfile

import (
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// defaultsRC has the parts of /etc/defaults/rc.conf that matter to what is read.
const defaultsRC = `#!/bin/sh
# This is rc.conf - a file full of useful variables that you can set
rc_debug="NO"		# Set to YES to enable debugging output from rc.d
rc_conf_files="/etc/rc.conf /etc/rc.conf.local"
local_startup="/usr/local/etc/rc.d" # startup script dirs.
hostname=""			# Set this!
kld_list=""			# Kernel modules to load after local disks are mounted
sshd_enable="NO"
local_unbound_anchor="${local_unbound_workdir}/root.key"

##############################################################
if [ -z "${source_rc_confs_defined}" ]; then
	source_rc_confs_defined=yes
	source_rc_confs() {
		local i sourced_files
		for i in ${rc_conf_files}; do
			case ${sourced_files} in
			*:$i:*)
				;;
			*)
				sourced_files="${sourced_files}:$i:"
				if [ -r $i ]; then
					. $i
				fi
				;;
			esac
		done
	}
fi

# Allow vendors to override FreeBSD defaults in /etc/default/rc.conf
if [ -r /etc/defaults/vendor.conf ]; then
	. /etc/defaults/vendor.conf
fi
`

// defaultsLoader has the parts of /boot/defaults/loader.conf that matter to what is read.
const defaultsLoader = `exec="echo Loading /boot/defaults/loader.conf"
kernel="kernel"		# /boot sub-directory containing kernel and modules
loader_conf_files="/boot/device.hints /boot/loader.conf"
loader_conf_dirs="/boot/loader.conf.d"
local_loader_conf_files="/boot/loader.conf.local"
module_blacklist="drm drm2 radeonkms i915kms amdgpu"	# Loader module blacklist
#module_load="YES"		# loads module "module"
`

// rcView is the view of a tree of these files.
func rcView(t *testing.T, files map[string]string, services ...string) *View {
	t.Helper()
	tree := newTree(t)
	for path, text := range files {
		tree.file(path, text, 0o644)
	}
	v, err := tree.RC(services...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func loaderView(t *testing.T, files map[string]string) *View {
	t.Helper()
	tree := newTree(t)
	for path, text := range files {
		tree.file(path, text, 0o644)
	}
	v, err := tree.Loader()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestRCIsReadInFreeBSDsOrder(t *testing.T) {
	all := map[string]string{
		RCDefaults: defaultsRC, RCVendor: "k=vendor\n", RCConf: "k=conf\n", RCConfLocal: "k=local\n",
		"/etc/rc.conf.d/network": "k=network\n", "/etc/rc.conf.d/netif/b": "k=b\n", "/etc/rc.conf.d/netif/a": "k=a\n",
		"/etc/rc.conf.d/netif/.hidden": "k=hidden\n", "/etc/rc.conf.d/netif/sub/x": "k=sub\n",
		"/usr/local/etc/rc.conf.d/netif": "k=usrlocal\n", "/etc/rc.conf.d/other": "k=other\n",
	}
	order := []string{RCDefaults, RCVendor, RCConf, RCConfLocal, "/etc/rc.conf.d/network", "/etc/rc.conf.d/netif/a",
		"/etc/rc.conf.d/netif/b", "/usr/local/etc/rc.conf.d/netif"}
	v := rcView(t, all, "network", "netif")
	if got := v.Files(); !slices.Equal(got, order) {
		t.Fatalf("read %q", got)
	}
	got := v.Get("k")
	if !got.Is("usrlocal") || got.File != order[7] || got.Line != 1 || got.Times != 7 || len(got.Settings) != 7 {
		t.Errorf("%+v", got)
	}
	if got.Settings[0] != (Setting{File: RCVendor, Line: 1, Value: "vendor"}) {
		t.Errorf("%+v", got.Settings[0])
	}
	// Each of them decides where the later ones are not there.
	for len(order) > 2 {
		last := order[len(order)-1]
		delete(all, last)
		order = order[:len(order)-1]
		if got := rcView(t, all, "network", "netif").Get("k"); got.File != order[len(order)-1] {
			t.Errorf("without %s: %+v", last, got)
		}
	}
	if !v.ReadsAfter(RCConfLocal, RCConf) || v.ReadsAfter(RCConf, RCConfLocal) || v.ReadsAfter("/none", RCConf) || v.ReadsAfter(RCConf, "/none") {
		t.Error("ReadsAfter")
	}
}

func TestAHostsDefaultsLeaveNoDoubt(t *testing.T) {
	v := rcView(t, map[string]string{RCDefaults: defaultsRC, RCConf: rcFiles["fresh 14"]})
	for key, want := range map[string]string{"hostname": "proxy1.example.org", "sshd_enable": "YES", "kld_list": "", "rc_debug": "NO"} {
		if got := v.Get(key); !got.Is(want) {
			t.Errorf("%s: %+v", key, got)
		}
	}
	if got := v.Get("certsync_enable"); got.Set || got.Doubt != "" || got.File != "" {
		t.Errorf("%+v", got)
	}
	if got := v.Get("local_unbound_anchor"); got.Doubt != RCDefaults+": line 9 computes it" {
		t.Errorf("%+v", got)
	}
	if got := v.Keys("ifconfig_em0"); !slices.Equal(got, []string{"ifconfig_em0", "ifconfig_em0_ipv6"}) {
		t.Errorf("%q", got)
	}
}

func TestRCConfFilesIsHonoured(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  []string
	}{
		"in the defaults": {map[string]string{RCDefaults: defaultsRC + "rc_conf_files=\"/etc/x /etc/rc.conf\"\n", "/etc/x": "", RCConf: "", RCConfLocal: ""},
			[]string{RCDefaults, "/etc/x", RCConf}},
		"by a file, which adds one": {map[string]string{RCDefaults: defaultsRC, RCConf: "rc_conf_files=\"/etc/rc.conf /etc/x\"\n", "/etc/x": "", RCConfLocal: ""},
			[]string{RCDefaults, RCConf, RCConfLocal, "/etc/x"}},
		"none":             {map[string]string{RCDefaults: "rc_conf_files=\"\"\n", RCConf: ""}, []string{RCDefaults}},
		"without defaults": {map[string]string{RCConf: "", RCConfLocal: ""}, []string{RCConf, RCConfLocal}},
		"not absolute":     {map[string]string{RCDefaults: "rc_conf_files=\"etc/rc.conf /etc/../etc/rc.conf\"\n", RCConf: ""}, []string{RCDefaults}},
	} {
		if got := rcView(t, c.files).Files(); !slices.Equal(got, c.want) {
			t.Errorf("%s: read %q", name, got)
		}
	}
	v := rcView(t, map[string]string{RCConf: "rc_conf_files=\"$rc_conf_files /etc/x\"\nk=1\n"})
	if got := v.Get("k"); !strings.Contains(got.Doubt, "which files are read cannot be told, because of rc_conf_files: /etc/rc.conf: line 1") {
		t.Errorf("%+v", got)
	}
	// A command that may set anything is no reason to doubt the list of files.
	v = rcView(t, map[string]string{RCConf: ". /etc/site.conf\nk=1\n"})
	if got := v.Get("k"); !got.Is("1") {
		t.Errorf("%+v", got)
	}
	v = rcView(t, map[string]string{RCDefaults: "local_startup=\"/usr/local/etc/rc.d /opt/etc/rc.d\"\n", "/opt/etc/rc.conf.d/x": "k=opt\n", "/usr/local/etc/rc.conf.d/x": "k=local\n"}, "x")
	if got := v.Get("k"); !got.Is("opt") {
		t.Errorf("%+v", got)
	}
}

func TestALaterFileTakesADoubtAwayAndAnotherBringsOne(t *testing.T) {
	v := rcView(t, map[string]string{RCConf: "k=$x\nj=1\ni=1\n", RCConfLocal: "k=1\n[ -f /x ] && j=2\nreturn\ni=2\n", "/etc/rc.conf.d/s": "i=3\n"}, "s")
	if got := v.Get("k"); !got.Is("1") {
		t.Errorf("%+v", got)
	}
	if got := v.Get("j"); got.Doubt != "/etc/rc.conf.local: line 2 sets it under a condition or in another shell" || got.Value != "1" {
		t.Errorf("%+v", got)
	}
	if got := v.Get("i"); !got.Is("3") {
		t.Errorf("%+v", got)
	}
}

func TestAFileThatCannotBeParsedFailsTheView(t *testing.T) {
	tree := newTree(t)
	tree.file(RCConf, "k=1\r\n", 0o644)
	if _, err := tree.RC(); !errors.Is(err, ErrSyntax) || !strings.Contains(err.Error(), tree.real(RCConf)+" cannot be read: line 1") {
		t.Errorf("%v", err)
	}
	tree.file(RCConf, "", 0o644)
	if err := os.Mkdir(tree.real(RCConfLocal), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := tree.RC(); !errors.Is(err, ErrNotFile) {
		t.Errorf("%v", err)
	}
	tree.file(LoaderConf, "k=\x00", 0o644)
	if _, err := tree.Loader(); !errors.Is(err, ErrSyntax) {
		t.Errorf("%v", err)
	}
	tree.file(SysctlConf, "k=1\r\n", 0o644)
	if _, err := tree.Sysctl(); !errors.Is(err, ErrSyntax) {
		t.Errorf("%v", err)
	}
}

func TestAFileThatMayNotBeReadBringsADoubt(t *testing.T) {
	if os.Getuid() == 0 {
		// What matters is done by hand below: root may read all.
		v := &View{files: []viewed{{path: RCConf, file: parse(t, Shell, "k=1\nj=1\n")}, {path: "/etc/rc.conf.d/netif", file: unread(Shell), unread: true}}}
		wantUnread(t, v)
		return
	}
	tree := newTree(t)
	tree.file(RCConf, "k=1\nj=1\n", 0o644)
	tree.file("/etc/rc.conf.d/netif", "k=2\n", 0)
	v, err := tree.RC("netif")
	if err != nil {
		t.Fatal(err)
	}
	wantUnread(t, v)
}

func wantUnread(t *testing.T, v *View) {
	t.Helper()
	if got := v.Get("k"); got.Doubt != "/etc/rc.conf.d/netif: this user may not read it" {
		t.Errorf("%+v", got)
	}
	if got := v.Unread(); !slices.Equal(got, []string{"/etc/rc.conf.d/netif"}) {
		t.Errorf("%q", got)
	}
}

func TestAServiceFolderWithOtherThingsInIt(t *testing.T) {
	tree := newTree(t)
	tree.file("/etc/rc.conf.d/netif/a", "k=1\n", 0o644)
	if err := syscall.Mkfifo(tree.real("/etc/rc.conf.d/netif/fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	tree.link("nowhere", "/etc/rc.conf.d/netif/dangling")
	v, err := tree.RC("netif")
	if err != nil || !v.Get("k").Is("1") {
		t.Errorf("%v", err)
	}
	tree.file("/usr/local/etc", "a file\n", 0o644)
	if v, err = tree.RC("netif"); err != nil || !v.Get("k").Is("1") {
		t.Errorf("%v", err)
	}
}

func TestTheLoadersFilesAreReadInItsOrder(t *testing.T) {
	all := map[string]string{
		LoaderDefaults: defaultsLoader, "/boot/device.hints": "carp_load=\"hints\"\n", LoaderConf: "carp_load=\"conf\"\n",
		LoaderConfDir + "/a.conf": "x=\"1\"\n", LoaderConfDir + "/b.conf": "carp_load=\"dir\"\n",
		LoaderConfDir + "/c.conf.certsync-orig": "carp_load=\"bad\"\n", LoaderConfDir + "/d": "carp_load=\"bad\"\n",
		LoaderConfDir + "/sub.conf/x": "", LoaderLocal: "carp_load=\"local\"\n",
	}
	order := []string{LoaderDefaults, "/boot/device.hints", LoaderConf, LoaderConfDir + "/a.conf", LoaderConfDir + "/b.conf", LoaderLocal}
	for _, defaults := range []bool{true, false} {
		if !defaults {
			delete(all, LoaderDefaults)
			order = order[1:]
		}
		v := loaderView(t, all)
		if got := v.Files(); !slices.Equal(got, order) {
			t.Errorf("read %q", got)
		}
		if got := v.Get("carp_load"); !got.Is("local") || got.File != LoaderLocal || got.Line != 1 || got.Times != 4 {
			t.Errorf("%+v", got)
		}
		if !v.ReadsAfter(LoaderLocal, LoaderConf) {
			t.Error("ReadsAfter")
		}
	}
}

func TestALaterFileThatOverridesIsNamed(t *testing.T) {
	v := loaderView(t, map[string]string{LoaderDefaults: defaultsLoader, LoaderConf: "carp_load=\"YES\"\n", LoaderConfDir + "/x.conf": "# x\n\ncarp_load=\"NO\"\n"})
	got := v.Get("carp_load")
	if !got.Is("NO") || got.File != LoaderConfDir+"/x.conf" || got.Line != 3 || !v.ReadsAfter(got.File, LoaderConf) {
		t.Errorf("%+v", got)
	}
}

func TestTheLoadersListsAreHonoured(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  []string
	}{
		"older defaults": {map[string]string{LoaderDefaults: "loader_conf_files=\"/boot/loader.conf /boot/loader.conf.local\"\nlocal_loader_conf_files=\"\"\n",
			LoaderConf: "", LoaderLocal: "", LoaderConfDir + "/a.conf": ""}, []string{LoaderDefaults, LoaderConf, LoaderLocal, LoaderConfDir + "/a.conf"}},
		"a file names another": {map[string]string{LoaderDefaults: defaultsLoader, LoaderConf: "loader_conf_files=\"/boot/x /boot/loader.conf\"\n", "/boot/x": "loader_conf_files=\"/boot/y\"\n", "/boot/y": "", LoaderLocal: ""},
			[]string{LoaderDefaults, LoaderConf, "/boot/x", "/boot/y", LoaderLocal}},
		"another folder": {map[string]string{LoaderDefaults: defaultsLoader, LoaderConf: "loader_conf_dirs=\"/boot/none /boot/more /boot/loader.conf\"\n", LoaderConfDir + "/a.conf": "", "/boot/more/b.conf": ""},
			[]string{LoaderDefaults, LoaderConf, "/boot/more/b.conf"}},
	} {
		if got := loaderView(t, c.files).Files(); !slices.Equal(got, c.want) {
			t.Errorf("%s: read %q", name, got)
		}
	}
	for name, files := range map[string]map[string]string{
		"computed":        {LoaderDefaults: defaultsLoader, LoaderConf: "loader_conf_files=\"${x}\"\ncarp_load=\"YES\"\n"},
		"computed folder": {LoaderDefaults: defaultsLoader, LoaderConf: "loader_conf_dirs=\"${x}\"\ncarp_load=\"YES\"\n"},
		"a program":       {LoaderDefaults: defaultsLoader, LoaderConf: "carp_load=\"YES\"\nloader_conf_files=\"/boot/x.lua\"\n", "/boot/x.lua": "carp_load=\"NO\"\n"},
	} {
		if got := loaderView(t, files).Get("carp_load"); got.Doubt == "" || !got.Set {
			t.Errorf("%s: %+v", name, got)
		}
	}
	v := loaderView(t, map[string]string{LoaderDefaults: defaultsLoader, LoaderConf: "carp_load=\"YES\"\nloader_conf_files=\"/boot/x.lua\"\n"})
	if got := v.Get("carp_load"); !got.Is("YES") {
		t.Errorf("a program that is not there: %+v", got)
	}
}

// The loader reads a folder in the order of its entries on the disk.
func TestTwoFilesOfAFolderThatDifferAreADoubt(t *testing.T) {
	files := map[string]string{LoaderDefaults: defaultsLoader, LoaderConfDir + "/a.conf": "carp_load=\"YES\"\n", LoaderConfDir + "/b.conf": "carp_load=\"NO\"\n"}
	if got := loaderView(t, files).Get("carp_load"); !strings.Contains(got.Doubt, "in no certain order") {
		t.Errorf("%+v", got)
	}
	files[LoaderLocal] = "carp_load=\"YES\"\n"
	if got := loaderView(t, files).Get("carp_load"); !got.Is("YES") {
		t.Errorf("%+v", got)
	}
	delete(files, LoaderLocal)
	files[LoaderConfDir+"/b.conf"] = files[LoaderConfDir+"/a.conf"]
	if got := loaderView(t, files).Get("carp_load"); !got.Is("YES") {
		t.Errorf("%+v", got)
	}
}

func TestTheBlacklistIsToldWithItsLine(t *testing.T) {
	for text, want := range map[string]bool{
		"": false, "module_blacklist=\"carp\"\n": true, "module_blacklist=\"a,carp;b\"\n": true, "module_blacklist=\"a carp b\"\n": true,
		"module_blacklist=carp\n": true, "module_blacklist=\"carpet ncarp if_carp\"\n": false, "module_blacklist=\"carp\"\nmodule_blacklist=\"\"\n": false,
	} {
		v := loaderView(t, map[string]string{LoaderDefaults: defaultsLoader, LoaderConf: text})
		list, got := v.Blacklisted("carp")
		if got != want || got && (list.File != LoaderConf || list.Line != 1) {
			t.Errorf("%q: %t, %+v", text, got, list)
		}
		if _, drm := v.Blacklisted("drm"); drm != (text == "") {
			t.Errorf("%q: drm %t", text, drm)
		}
	}
}

func TestSysctlsFilesAreReadInOrder(t *testing.T) {
	tree := newTree(t)
	const key = "net.inet.carp.preempt"
	tree.file("/etc/sysctl.kld.d/carp.conf", key+"=0\nx=1\n", 0o644)
	tree.file(SysctlConf, "# c\n"+key+"=1\n", 0o644)
	v, err := tree.Sysctl("carp", "none")
	if err != nil {
		t.Fatal(err)
	}
	if got := v.Get(key); !got.Is("1") || got.File != SysctlConf || got.Line != 2 || got.Times != 2 {
		t.Errorf("%+v", got)
	}
	if got := v.Get("x"); !got.Is("1") {
		t.Errorf("%+v", got)
	}
	tree.file(SysctlLocal, key+"=0\n", 0o644)
	if v, err = tree.Sysctl(); err != nil || !v.Get(key).Is("0") || v.Get("x").Set {
		t.Errorf("%+v, %v", v.Get(key), err)
	}
}
