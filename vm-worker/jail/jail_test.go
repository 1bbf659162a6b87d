// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package jail

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

// shell runs a script in a jail and returns what it wrote to its descriptor 3.
func shell(t *testing.T, edit func(*Config), script string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("jails need root")
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("busybox is not installed")
	}
	if busybox, err = filepath.EvalSymlinks(busybox); err != nil {
		t.Fatal(err)
	}
	c := Config{
		Root: t.TempDir(), Argv: []string{"/busybox", "sh", "-c", "exec >&3 2>&1; " + script},
		Binds: []Bind{{Source: busybox, Target: "/busybox"}}, Stage: "/.stage", Export: "/share", Hostname: "jailed",
	}
	if edit != nil {
		edit(&c)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := Start(t.Context(), c, []*os.File{w}, os.Stderr, nil)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	out, readErr := io.ReadAll(r)
	if _, err := p.Wait(); err != nil || readErr != nil {
		t.Fatal(err, readErr)
	}
	return strings.TrimSpace(string(out))
}

func TestJailShowsNothingOfTheHost(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, script, want string }{
		{"process 1", "echo $$", "1"},
		{"its own host name", "/busybox hostname", "jailed"},
		{"devices", "cd /dev; echo *", "null urandom zero"},
		{"no home", "test -e /root || test -e /home || test -e /run || test -e /sys || test -e /tmp; echo $?", "1"},
		{"etc", "cd /etc; echo *", "ld.so.cache"},
		{"no system in proc", "cd /proc; /busybox ls -d kcore sysrq-trigger sys 2>/dev/null | /busybox wc -l", "0"},
		{"one network device, down", "/busybox ip -o link | /busybox grep -c LOWER_UP", "0"},
		{"read-only root", "/busybox mkdir /x 2>&1 | /busybox grep -c Read-only", "1"},
		{"read-only usr", "/busybox touch /usr/x 2>&1 | /busybox grep -c Read-only", "1"},
		{"read-only share", "/busybox touch /share/x 2>&1 | /busybox grep -c Read-only", "1"},
		{"no capabilities", "/busybox grep CapEff /proc/self/status | /busybox tr -d '\\t'", "CapEff:0000000000000000"},
		{"cannot mount", "/busybox mount -t tmpfs x /share 2>&1 | /busybox grep -ci permi", "1"},
		{"no new privileges", "/busybox grep NoNewPrivs /proc/self/status | /busybox tr -d '\\t'", "NoNewPrivs:1"},
		{"no core files", "ulimit -c", "0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if got := shell(t, nil, c.script); got != c.want {
				t.Errorf("%s gives %q, want %q", c.script, got, c.want)
			}
		})
	}
}

func TestJailedProgramHoldsOnlyWhatItWasGiven(t *testing.T) {
	t.Parallel()
	secret, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	// As one that this process has got from whoever started it: open across an exec.
	inherited, err := unix.FcntlInt(secret.Fd(), unix.F_DUPFD, 8)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(inherited)
	if got := shell(t, nil, "/busybox ls -l /proc/$$/fd | /busybox grep -c passwd"); got != "0" {
		t.Errorf("%s descriptors lead to a file of the host", got)
	}
	fds := strings.Fields(shell(t, nil, "/busybox ls /proc/$$/fd; true"))
	// The shell itself may keep copies at 10 and above.
	fds = slices.DeleteFunc(fds, func(fd string) bool { return len(fd) > 1 })
	if want := []string{"0", "1", "2", "3"}; !slices.Equal(fds, want) {
		t.Errorf("the descriptors are %v, want %v", fds, want)
	}
}

func TestJailKeepsTheCapabilitiesAskedFor(t *testing.T) {
	t.Parallel()
	edit := func(c *Config) { c.Capabilities = []uintptr{unix.CAP_CHOWN, unix.CAP_FOWNER} }
	if got := shell(t, edit, "/busybox grep -E 'Cap(Eff|Bnd)' /proc/self/status | /busybox tr -d '\t'"); got != "CapEff:0000000000000009\nCapBnd:0000000000000009" {
		t.Errorf("the capabilities are %s", got)
	}
}

func TestJailIsEnteredFromItsCgroup(t *testing.T) {
	t.Parallel()
	dir := "/sys/fs/cgroup/pids/bulkhead-jail-test"
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("no cgroup can be made: %v", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	edit := func(c *Config) { c.CgroupProcs = []string{dir + "/cgroup.procs"} }
	if got := shell(t, edit, "/busybox grep -c pids:/bulkhead-jail-test /proc/self/cgroup"); got != "1" {
		t.Errorf("the cgroup was not entered: %s", got)
	}
}

func TestFailedJailSaysWhatFailedAndLeavesNoProcess(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("jails need root")
	}
	refusal := errors.New("not now")
	for _, c := range []struct {
		name     string
		config   Config
		launched error
		want     string
	}{
		{"bind", Config{Argv: []string{"/x"}, Binds: []Bind{{Source: "/missing", Target: "/m"}}}, nil, "taking /missing into the jail"},
		{"program", Config{Argv: []string{"/missing"}}, nil, "executing /missing"},
		{"cgroup", Config{Argv: []string{"/x"}, CgroupProcs: []string{"/missing/cgroup.procs"}}, nil, "entering a cgroup"},
		{"record", Config{Argv: []string{"/x"}}, refusal, "not now"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.config.Root = t.TempDir()
			var pid int
			_, err := Start(t.Context(), c.config, nil, nil, func(p int) error { pid = p; return c.launched })
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the error is %v, want %q in it", err, c.want)
			}
			if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
				t.Errorf("process %d is left: %v", pid, err)
			}
		})
	}
}

func TestCancelledStartLeavesNoProcess(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("jails need root")
	}
	ctx, cancel := context.WithCancel(t.Context())
	var pid int
	_, err := Start(ctx, Config{Root: t.TempDir(), Argv: []string{"/usr/bin/true"}}, nil, nil, func(p int) error {
		pid = p
		cancel()
		return unix.Kill(p, unix.SIGSTOP) // it answers nothing from here on
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the start gives %v", err)
	}
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("process %d is left: %v", pid, err)
	}
}

func TestHostSeesNoMountOfTheJail(t *testing.T) {
	t.Parallel()
	root := ""
	r := shell(t, func(c *Config) { root = c.Root }, "/busybox cat /proc/self/mounts")
	if !strings.Contains(r, "/share") {
		t.Errorf("the jail's mounts are %s", r)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(mounts, []byte(root)) {
		t.Error("the host's mount table shows the jail's root")
	}
	if entries, err := os.ReadDir(root); err != nil || len(entries) > 0 {
		t.Errorf("the jail's root left %v on the host, %v", entries, err)
	}
}

func BenchmarkStart(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("jails need root")
	}
	var total time.Duration
	for b.Loop() {
		begin := time.Now()
		p, err := Start(b.Context(), Config{Root: b.TempDir(), Argv: []string{"/usr/bin/true"}, Stage: "/.stage", Export: "/share"}, nil, nil, nil)
		if err != nil {
			b.Fatal(err)
		}
		total += time.Since(begin)
		_, _ = p.Wait()
	}
	b.ReportMetric(float64(total.Microseconds())/1000/float64(b.N), "ms-to-program")
}
