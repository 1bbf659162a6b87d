// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"bulkhead/bus/stdio"
	vmv1 "bulkhead/proto/vm/v1"
)

// programsDir is where programs builds, empty until then.
var programsDir string

// programs builds the command line and the relay, side by side as packages
// install them.
var programs = sync.OnceValue(func() error {
	var err error
	if programsDir, err = os.MkdirTemp("", "bulkhead-programs"); err != nil {
		return err
	}
	for _, name := range []string{"bulkhead", "bulkhead-relay"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(programsDir, name), "./cmd/"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w: %s", name, err, out)
		}
	}
	return nil
})

func TestMain(m *testing.M) {
	status := m.Run()
	if programsDir != "" {
		os.RemoveAll(programsDir)
	}
	os.Exit(status)
}

// engine is a host with the real programs, called the way a shim does: it is
// the subreaper, so relays become its children.
type engine struct {
	*host
}

func newEngine(t testing.TB) *engine {
	t.Helper()
	if testing.Short() || os.Geteuid() != 0 {
		t.Skip("builds programs and needs root")
	}
	if err := programs(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	return &engine{newHost(t)}
}

// command is the real program with an engine's flags and little environment.
func (e *engine) command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(programsDir, "bulkhead"), append([]string{"--root", e.root, "--config", e.config}, args...)...)
	cmd.Env = []string{"XDG_RUNTIME_DIR="}
	return cmd
}

// killRelay ends a relay that became our child, and reaps it.
func killRelay(t *testing.T, pid int) {
	t.Helper()
	t.Cleanup(func() {
		unix.Kill(pid, unix.SIGKILL)
		unix.Wait4(pid, nil, 0, nil)
	})
}

func readPid(t *testing.T, path string) int {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestRelayIsTheCallersOrphanInItsNamespaces(t *testing.T) {
	e := newEngine(t)
	dir := e.bundle(nil)
	pidFile := filepath.Join(dir, "init.pid")
	var stderr bytes.Buffer
	cmd := e.command("create", "--bundle", dir, "--pid-file", pidFile, "c1")
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	cmd.Stdin, cmd.Stdout = null, null // with a buffer there would be a pipe, and the relay rightly holds that
	errFile, err := os.Create(filepath.Join(dir, "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer errFile.Close()
	cmd.Stderr = errFile
	err = cmd.Run()
	text, _ := os.ReadFile(errFile.Name())
	stderr.Write(text)
	if err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	pid := readPid(t, pidFile)
	killRelay(t, pid)
	if got := e.creates[0].GetRelay(); int(got.GetPid()) != pid || got.GetStartTime() == 0 || !strings.HasPrefix(got.GetSocket(), e.bus.RunDir) {
		t.Errorf("the worker was told %v, the pid-file %d", got, pid)
	}
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if !strings.Contains(string(status), fmt.Sprintf("PPid:\t%d\n", os.Getpid())) {
		t.Errorf("the relay is not our child: %s", status)
	}
	for _, ns := range []string{"net", "ipc", "uts", "mnt", "pid"} {
		ours, _ := os.Readlink("/proc/self/ns/" + ns)
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		if err != nil || ours == theirs {
			t.Errorf("namespace %s: ours %q, the relay's %q, %v", ns, ours, theirs, err)
		}
	}
	out, err := e.command("state", "c1").Output()
	if err != nil || !strings.Contains(string(out), fmt.Sprintf(`"pid": %d`, pid)) || !strings.Contains(string(out), `"status": "created"`) {
		t.Errorf("%v: %s", err, out)
	}
}

// TestTerminalCreateLeavesNobodyOnItsOutput: go-runc reads the output of a
// create with a terminal to its end, and hangs for as long as somebody holds it.
func TestTerminalCreateLeavesNobodyOnItsOutput(t *testing.T) {
	e := newEngine(t)
	dir := e.bundle(func(s *specs.Spec) {
		s.Process.Terminal = true
		s.Process.ConsoleSize = &specs.Box{Width: 91, Height: 17}
	})
	socket, pidFile := filepath.Join(t.TempDir(), "console.sock"), filepath.Join(dir, "pid")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := e.command("create", "--bundle", dir, "--pid-file", pidFile, "--console-socket", socket, "c1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan string, 1)
	go func() {
		text, _ := io.ReadAll(out)
		read <- string(text)
	}()
	select {
	case text := <-read: // the end of the pipe: nobody holds it any more
		if err := cmd.Wait(); err != nil || text != "" {
			t.Fatalf("%v: %q", err, text)
		}
	case <-ctx.Done():
		cmd.Process.Kill()
		t.Fatal("somebody holds the output of create")
	}
	killRelay(t, readPid(t, pidFile))
	// As the shim, we accept only now.
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	name, rights := make([]byte, 4096), make([]byte, 256)
	n, rn, _, _, err := conn.ReadMsgUnix(name, rights)
	if err != nil || n == 0 {
		t.Fatalf("%d bytes, %v", n, err)
	}
	messages, err := unix.ParseSocketControlMessage(rights[:rn])
	if err != nil || len(messages) != 1 {
		t.Fatalf("%d control messages, %v", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("%d descriptors, %v", len(fds), err)
	}
	defer unix.Close(fds[0])
	size, err := unix.IoctlGetWinsize(fds[0], unix.TIOCGWINSZ)
	if err != nil || size.Col != 91 || size.Row != 17 {
		t.Errorf("size %+v, %v", size, err)
	}
}

func TestKilledCreateTakesItsRelayAlong(t *testing.T) {
	e := newEngine(t)
	reached, release := make(chan int32, 1), make(chan struct{})
	e.onCreate = func(req *vmv1.CreateRequest) error {
		reached <- req.GetRelay().GetPid()
		<-release
		return nil
	}
	dir := e.bundle(nil)
	pidFile := filepath.Join(dir, "pid")
	cmd := e.command("create", "--bundle", dir, "--pid-file", pidFile, "c1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	select {
	case got := <-reached:
		pid = int(got)
	case <-time.After(30 * time.Second):
		cmd.Process.Kill()
		t.Fatal("create did not reach the worker")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	// It became ours when its parent died; its end is an event, not a guess.
	ended := make(chan error, 1)
	go func() {
		_, err := unix.Wait4(pid, nil, 0, nil)
		ended <- err
	}()
	select {
	case err := <-ended:
		if err != nil && !errors.Is(err, syscall.ECHILD) {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		unix.Kill(pid, unix.SIGKILL)
		<-ended
		t.Error("the relay outlived the create that was killed")
	}
	close(release)
	if _, err := os.Stat(pidFile); err == nil {
		t.Error("there is a pid-file")
	}
	if left, _ := filepath.Glob(filepath.Join(e.bus.RunDir, "relay", "*.sock")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestInterruptedCreateIsUndone(t *testing.T) {
	e := newEngine(t)
	reached, release := make(chan struct{}, 1), make(chan struct{})
	e.onCreate = func(*vmv1.CreateRequest) error {
		reached <- struct{}{}
		<-release
		return nil
	}
	dir := e.bundle(nil)
	var stderr bytes.Buffer
	cmd := e.command("create", "--bundle", dir, "c1")
	errFile, err := os.Create(filepath.Join(dir, "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer errFile.Close()
	cmd.Stderr = errFile
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-reached
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	close(release)
	err = cmd.Wait()
	text, _ := os.ReadFile(errFile.Name())
	stderr.Write(text)
	if err == nil {
		// The answer may have won the race; then the container is there, whole.
		if record, ok := e.record("c1"); ok {
			killRelay(t, int(record.GetRelay().GetPid()))
			return
		}
		t.Fatal("it succeeded without a container")
	}
	if _, ok := e.record("c1"); ok {
		t.Errorf("the record is still there: %s", &stderr)
	}
}

// BenchmarkState measures the whole process, as podman and CRI-O pay for it.
func BenchmarkState(b *testing.B) {
	e := newEngine(b)
	e.created("c1", nil)
	var took []time.Duration
	for b.Loop() {
		begin := time.Now()
		if out, err := e.command("state", "c1").CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms/median")
}

// endWith plays the worker at a relay's socket: it says how the process ended
// as soon as somebody listens.
func endWith(t *testing.T, socket string, code int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Error(err)
		return
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		t.Error(err)
	}
	if err := unix.Sendmsg(fd, stdio.AppendExit(nil, 0, 0, code, 0, 0), nil, nil, 0); err != nil {
		t.Error(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
}

func TestForegroundEndsWithTheProcesssStatus(t *testing.T) {
	e := newEngine(t)
	e.onStart = func(record *vmv1.Container) error {
		endWith(t, record.GetRelay().GetSocket(), 7)
		return nil
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, terminal := range []bool{false, true} {
		cmd := e.command("run", "--bundle", e.bundle(func(s *specs.Spec) { s.Process.Terminal = terminal }), "c1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = null, null, null
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		late := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		_ = cmd.Wait()
		late.Stop()
		if got := cmd.ProcessState.ExitCode(); got != 7 {
			t.Errorf("terminal %v: exit status %d", terminal, got)
		}
		if _, ok := e.record("c1"); ok {
			t.Errorf("terminal %v: the container is still there", terminal)
		}
	}
}

func TestForegroundExecEndsWithTheProgramsStatus(t *testing.T) {
	e := newEngine(t)
	dir := e.bundle(nil)
	pidFile := filepath.Join(dir, "pid")
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	run := func(args ...string) int {
		cmd := e.command(args...)
		errFile, err := os.Create(filepath.Join(dir, "stderr"))
		if err != nil {
			t.Fatal(err)
		}
		defer errFile.Close()
		cmd.Stdin, cmd.Stdout, cmd.Stderr = null, null, errFile
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		late := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		defer late.Stop()
		_ = cmd.Wait()
		if text, _ := os.ReadFile(errFile.Name()); len(text) > 0 {
			t.Errorf("%v: %s", args, text)
		}
		return cmd.ProcessState.ExitCode()
	}
	if status := run("create", "-b", dir, "--pid-file", pidFile, "c1"); status != 0 {
		t.Fatalf("exit status %d", status)
	}
	init := readPid(t, pidFile)
	killRelay(t, init)
	e.mu.Lock()
	e.onExec = func(req *vmv1.ExecRequest) error {
		exec, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", req.GetRelay().GetPid()))
		if want, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", init)); exec != want {
			t.Errorf("the exec's relay is in PID namespace %s, the container's in %s", exec, want)
		}
		endWith(t, req.GetRelay().GetSocket(), 9)
		return nil
	}
	e.mu.Unlock()
	if status := run("exec", "c1", "true"); status != 9 {
		t.Errorf("exit status %d", status)
	}
}
