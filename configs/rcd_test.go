// Package configs_test holds the files that a user copies against what they are made for, as far as Linux can.
package configs_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"certsync/internal/config"
)

// rcSubr stands for FreeBSD's rc.subr(8): what the script uses of it, with the order of run_rc_command. Like the real
// one it runs a service as ${name}_user, by su(1), where that is set.
const rcSubr = `
warn() { echo "WARNING: $*" >&2; }
checkyesno() { eval "_v=\$$1"; case $_v in [Yy][Ee][Ss]) return 0 ;; esac; return 1; }
load_rc_config() { . "$DIR/rc.conf"; }
# The process of a pid file, where the first word of its command line is the one given.
check_pidfile() {
	read -r _pid <"$1" 2>/dev/null || return 0
	_line=$(tr '\0' ' ' <"/proc/$_pid/cmdline" 2>/dev/null) || return 0
	case $_line in "$2 "* | "/bin/sh $2 "*) echo "$_pid" ;; esac
}
wait_for_pids() { for _p; do while [ -d "/proc/$_p" ] && ! grep -q '^State:.Z' "/proc/$_p/status"; do sleep 0.02; done; done; }
run_rc_command() {
	rc_arg=$1
	eval "_user=\$${name}_user _cmd=\$${rc_arg}_cmd _precmd=\$${rc_arg}_precmd _postcmd=\$${rc_arg}_postcmd rc_flags=\$${name}_flags"
	case " start stop restart status $extra_commands " in *" $rc_arg "*) ;; *) echo "unknown directive $rc_arg" >&2; return 1 ;; esac
	checkyesno "$rcvar" || { echo "Cannot '$rc_arg' $name. Set $rcvar to YES." >&2; return 0; }
	rc_pid=$(check_pidfile "$pidfile" "$command")
	if [ -n "$_cmd" ]; then
		eval "$_precmd" || return 1
		eval "$_cmd"
		return
	fi
	case $rc_arg in
	status) [ -n "$rc_pid" ] || return 1; echo "$name is running as pid $rc_pid." ;;
	start)
		[ -z "$rc_pid" ] || { echo "$name already running?" >&2; return 1; }
		[ -r "$required_files" ] || { warn "$required_files is not readable."; return 1; }
		eval "$_precmd" || { warn "failed precmd routine for $name"; return 1; }
		if [ -n "$_user" ]; then
			warn "by su -m $_user"
			return 1
		fi
		eval "$command $rc_flags $command_args" || return 1
		;;
	stop)
		[ -n "$rc_pid" ] || { echo "$name not running?" >&2; return 1; }
		eval "$_precmd" || return 1
		kill -TERM "$rc_pid"
		wait_for_pids "$rc_pid"
		eval "$_postcmd"
		;;
	esac
}
`

// stubs stand for what the script runs. daemon(8) is that of FreeBSD 13, which ends at SIGTERM without waiting for its
// child, and by a SIGHUP.
var stubs = map[string]string{
	"install": `#!/bin/sh
echo "install $*" >>"$DIR/log"
for last; do :; done
mkdir -p "$last"
`,
	"daemon": `#!/bin/sh
if [ "$1" != supervise ]; then
	echo "daemon $*" >>"$DIR/log"
	while getopts cfR:P:p:ST:u: o; do
		case $o in P) parent=$OPTARG ;; p) child=$OPTARG ;; R | S | T | u | c | f) ;; *) exit 64 ;; esac
	done
	shift $((OPTIND - 1))
	"$0" supervise "$child" "$@" </dev/null >/dev/null 2>&1 &
	echo $! >"$parent"
	while [ ! -s "$child" ]; do sleep 0.02; done
	exit 0
fi
child=$2
shift 2
"$@" &
pid=$!
trap 'kill -TERM $pid; exit 1' TERM
echo $pid >"$child"
wait $pid
`,
	"certsync": `#!/bin/sh
# What awaits the line of run sends it signals then.
if [ "$1" = run ]; then
	trap 'echo HUP >>"$DIR/log"' HUP
	trap 'sleep 0.3; echo ended >>"$DIR/log"; exit 0' TERM
fi
echo "certsync $*" >>"$DIR/log"
case $1 in
sync) [ ! -e "$DIR/sync-hangs" ] || exec sleep 60; [ ! -e "$DIR/sync-fails" ] ;;
check) [ ! -e "$DIR/check-fails" ] ;;
run)
	while [ -d "$DIR" ]; do sleep 0.02; done # not longer than the test
	;;
esac
`,
}

// rcHost is a host with the rc.d script, its paths changed to those of a folder.
type rcHost struct {
	t   *testing.T
	dir string
}

func newRCHost(t *testing.T, rcConf string) *rcHost {
	t.Helper()
	h := &rcHost{t: t, dir: t.TempDir()}
	script := h.read("rc.d/certsync")
	for from, to := range map[string]string{"/etc/rc.subr": "/rc.subr", "/usr/sbin/daemon": "/bin/daemon", "/usr/local/sbin/certsync": "/bin/certsync",
		"/var/run/certsync": "/certsync", config.DefaultPath: "/certsync.yaml"} {
		if !strings.Contains(script, from) {
			t.Errorf("the script does not name %s", from)
		}
		script = strings.ReplaceAll(script, from, h.dir+to)
	}
	if err := os.Mkdir(h.path("bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range stubs {
		h.write("bin/"+name, text)
	}
	h.write("rc.subr", rcSubr)
	h.write("rc.conf", rcConf)
	h.write("certsync.yaml", "")
	h.write("service", script)
	t.Cleanup(func() { h.run("stop") })
	return h
}

func (h *rcHost) path(name string) string { return filepath.Join(h.dir, name) }

func (h *rcHost) write(name, text string) {
	h.t.Helper()
	if err := os.WriteFile(h.path(name), []byte(text), 0o755); err != nil {
		h.t.Fatal(err)
	}
}

func (h *rcHost) read(name string) string {
	h.t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		h.t.Fatal(err)
	}
	return string(data)
}

// run is `service certsync ARG`.
func (h *rcHost) run(arg string) (code int, output string) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", h.path("service"), arg)
	cmd.Env = []string{"DIR=" + h.dir, "PATH=" + h.path("bin") + ":/usr/bin:/bin"}
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		h.t.Fatalf("service certsync %s: %v: %s", arg, err, out)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

func (h *rcHost) start() {
	h.t.Helper()
	if code, out := h.run("start"); code != 0 {
		h.t.Fatalf("start: exit %d: %s", code, out)
	}
}

// log are the lines that the stubs wrote, with $DIR for the folder.
func (h *rcHost) log() []string {
	data, _ := os.ReadFile(h.path("log")) // not there: nothing was run
	return strings.FieldsFunc(strings.ReplaceAll(string(data), h.dir, "$DIR"), func(r rune) bool { return r == '\n' })
}

// await waits for a line of the log.
func (h *rcHost) await(line string) {
	h.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !slices.Contains(h.log(), line); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			h.t.Fatalf("no line %q in %q", line, h.log())
		}
	}
}

// pid reads a pid file.
func (h *rcHost) pid(name string) int {
	h.t.Helper()
	data, err := os.ReadFile(h.path(name))
	if err != nil {
		h.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		h.t.Fatal(err)
	}
	return pid
}

const enabled = "certsync_enable=YES\n"

var started = []string{
	"install -d -o certsync -g certsync -m 0750 $DIR/certsync",
	"certsync sync --disk --deadline 20s -c $DIR/certsync.yaml",
	"certsync check -c $DIR/certsync.yaml",
	"daemon -c -f -R 5 -P $DIR/certsync.pid -p $DIR/certsync-run.pid -S -T certsync -u certsync $DIR/bin/certsync run -c $DIR/certsync.yaml",
}

func TestServiceStartWritesTheFilesThenStartsTheDaemon(t *testing.T) {
	h := newRCHost(t, enabled)
	h.start()
	h.await("certsync run -c $DIR/certsync.yaml")
	if got := h.log()[:4]; !slices.Equal(got, started) {
		t.Errorf("it runs\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(started, "\n"))
	}
	if code, out := h.run("status"); code != 0 || !strings.Contains(out, "is running as pid "+strconv.Itoa(h.pid("certsync.pid"))) {
		t.Errorf("status: exit %d: %s", code, out)
	}
}

func TestServiceVariablesCount(t *testing.T) {
	h := newRCHost(t, enabled+`certsync_user=keeper certsync_config=$DIR/other.yaml certsync_run_dir=$DIR/run certsync_disk_timeout=25 certsync_restart_delay=60
`)
	h.write("other.yaml", "")
	h.start()
	want := []string{
		"install -d -o keeper -g keeper -m 0750 $DIR/run",
		"certsync sync --disk --deadline 15s -c $DIR/other.yaml",
		"certsync check -c $DIR/other.yaml",
		"daemon -c -f -R 60 -P $DIR/certsync.pid -p $DIR/certsync-run.pid -S -T certsync -u keeper $DIR/bin/certsync run -c $DIR/other.yaml",
	}
	if got := h.log()[:4]; !slices.Equal(got, want) {
		t.Errorf("it runs\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestServiceIsNotEnabledByItself(t *testing.T) {
	h := newRCHost(t, "")
	if code, _ := h.run("start"); code != 0 || len(h.log()) > 0 {
		t.Errorf("exit %d, it runs %q", code, h.log())
	}
}

// The boot goes on, and HAProxy starts, whatever becomes of sync --disk.
func TestServiceStartOutlivesASyncThatHangsOrFails(t *testing.T) {
	for name, text := range map[string]string{"sync-hangs": "sync --disk ended with 124", "sync-fails": "sync --disk ended with 1 "} {
		t.Run(name, func(t *testing.T) {
			h := newRCHost(t, enabled+"certsync_disk_timeout=1\n")
			h.write(name, "")
			code, out := h.run("start")
			if code != 0 || !strings.Contains(out, text) {
				t.Errorf("exit %d: %s", code, out)
			}
			h.await("certsync run -c $DIR/certsync.yaml")
			if !slices.Contains(h.log(), "certsync sync --disk --deadline 1s -c $DIR/certsync.yaml") {
				t.Errorf("%q", h.log())
			}
		})
	}
}

func TestServiceWithAWrongConfigurationWritesTheFilesAndIsNotStarted(t *testing.T) {
	h := newRCHost(t, enabled)
	h.write("check-fails", "")
	if code, out := h.run("start"); code == 0 || !strings.Contains(out, "is wrong") {
		t.Errorf("exit %d: %s", code, out)
	}
	if got := h.log(); !slices.Equal(got, started[:3]) {
		t.Errorf("it runs %q", got)
	}
	if code, _ := h.run("configtest"); code == 0 {
		t.Error("configtest passes it")
	}
}

func TestServiceReloadSignalsCertsyncAndNotItsSupervisor(t *testing.T) {
	h := newRCHost(t, enabled)
	h.start()
	h.await("certsync run -c $DIR/certsync.yaml")
	if code, out := h.run("reload"); code != 0 {
		t.Fatalf("exit %d: %s", code, out)
	}
	h.await("HUP")
	if code, out := h.run("status"); code != 0 {
		t.Errorf("the supervisor is gone: %s", out)
	}
	if code, out := h.run("configtest"); code != 0 {
		t.Errorf("configtest: %s", out)
	}
}

func TestServiceReloadSignalsNobodyElse(t *testing.T) {
	h := newRCHost(t, enabled)
	if code, out := h.run("reload"); code == 0 || !strings.Contains(out, "does not run") {
		t.Errorf("without a pid file: exit %d: %s", code, out)
	}
	// The process ID of a certsync that was killed is somebody else's by now.
	other := exec.Command("sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- other.Wait() }()
	h.write("certsync-run.pid", strconv.Itoa(other.Process.Pid)+"\n")
	if code, _ := h.run("reload"); code == 0 {
		t.Error("it says that it reloaded")
	}
	select {
	case err := <-ended:
		t.Errorf("another process was signalled: %v", err)
	default:
	}
	if err := other.Process.Kill(); err != nil {
		t.Fatal(err)
	}
}

// A restart must not meet the certsync of before: it holds the lock until it has ended.
func TestServiceStopWaitsForCertsyncItself(t *testing.T) {
	h := newRCHost(t, enabled)
	h.start()
	h.await("certsync run -c $DIR/certsync.yaml")
	pid := h.pid("certsync-run.pid")
	if code, out := h.run("stop"); code != 0 {
		t.Fatalf("exit %d: %s", code, out)
	}
	if !slices.Contains(h.log(), "ended") {
		t.Error("it does not wait")
	}
	if err := syscall.Kill(pid, 0); err == nil {
		if state, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status"); err == nil && !bytes.Contains(state, []byte("State:\tZ")) {
			t.Error("certsync runs still")
		}
	}
}

// rcorder(8) reads these lines.
func TestServiceIsOrderedBeforeHAProxy(t *testing.T) {
	script := newRCHost(t, "").read("rc.d/certsync")
	for key, want := range map[string]string{"PROVIDE": "certsync", "REQUIRE": "FILESYSTEMS NETWORKING syslogd", "BEFORE": "haproxy", "KEYWORD": "shutdown"} {
		if m := regexp.MustCompile(`(?m)^# `+key+`: (.*)$`).FindAllStringSubmatch(script, -1); len(m) != 1 || m[0][1] != want {
			t.Errorf("%s: %q, want %q", key, m, want)
		}
	}
}

// The script, the configuration's defaults and bootstrap name the same things.
func TestServiceAgreesWithTheConfiguration(t *testing.T) {
	script := newRCHost(t, "").read("rc.d/certsync")
	c := config.Default()
	for _, line := range []string{`: "${certsync_config:=` + config.DefaultPath + `}"`, `: "${certsync_run_dir:=` + c.RunDir + `}"`,
		`: "${certsync_user:=` + c.SSH.User + `}"`, "rcvar=certsync_enable"} {
		if !strings.Contains(script, "\n"+line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
}

func TestServiceScriptIsCleanForShellcheck(t *testing.T) {
	need(t, "shellcheck")
	if out, err := exec.Command("shellcheck", "-s", "sh", "rc.d/certsync").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// need skips a test that lacks a tool on a laptop; in CI it is an error.
func need(t *testing.T, tool string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err == nil {
		return
	}
	const hint = "%s is not installed: run scripts/deps.sh"
	if os.Getenv("CI") == "true" {
		t.Fatalf(hint, tool)
	}
	t.Skipf(hint, tool)
}
