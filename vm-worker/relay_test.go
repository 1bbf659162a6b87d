// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor"
)

// relayBinary is the real relay, built by TestMain.
var relayBinary string

func buildRelay(dir string) error {
	relayBinary = filepath.Join(dir, "bulkhead-relay")
	build := exec.Command("go", "build", "-o", relayBinary, "bulkhead/runtime-frontend/cmd/bulkhead-relay")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return errors.New("building the relay: " + string(out))
	}
	return nil
}

// relay is a real relay, started as a frontend starts one: the worker's tests
// may not import the frontend, so this speaks its few words by hand
// (docs/architecture.md, "The relay").
type relay struct {
	t       *testing.T
	cmd     *exec.Cmd
	process hypervisor.Process
	socket  string
	control net.Conn
	stdin   io.WriteCloser
	output  *bytes.Buffer // to be read after code
	ended   chan struct{}
}

// The flags of clone(2) name namespaces of its own.
func startRelay(t *testing.T, runDir string, flags ...uintptr) *relay {
	t.Helper()
	dir := filepath.Join(runDir, "relay")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	dirFile, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer dirFile.Close()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "control"), os.NewFile(uintptr(fds[1]), "control")
	defer theirs.Close()
	control, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		t.Fatal(err)
	}
	name := bus.NewOperationID() + ".sock"
	r := &relay{t: t, control: control, socket: filepath.Join(dir, name), output: &bytes.Buffer{}, ended: make(chan struct{})}
	r.cmd = exec.Command(relayBinary)
	r.cmd.ExtraFiles = []*os.File{theirs, dirFile}
	r.cmd.Stdout = r.output
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNET} // as the frontend starts one, never in the host's network
	for _, flag := range flags {
		r.cmd.SysProcAttr.Cloneflags |= flag
	}
	if r.stdin, err = r.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	wait := sync.OnceFunc(func() { _ = r.cmd.Wait(); close(r.ended) })
	go wait()
	t.Cleanup(func() { r.kill(); <-r.ended; control.Close() })
	_ = control.SetDeadline(time.Now().Add(patience))
	if _, err := control.Write([]byte("socket=" + name + "\x00")); err != nil {
		t.Fatal(err)
	}
	word := make([]byte, 4096)
	if n, err := control.Read(word); err != nil || string(word[:n]) != "ready" {
		t.Fatalf("the relay says %q, %v", word[:n], err)
	}
	if r.process, err = hypervisor.FindProcess(r.cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *relay) identity() *vmv1.Relay {
	return &vmv1.Relay{Pid: int32(r.process.PID), StartTime: r.process.StartTime, Socket: r.socket}
}

// commit lets the relay outlive its frontend. It may have ended already.
func (r *relay) commit() { _, _ = r.control.Write([]byte("commit")) }

// vanish is the death of the frontend.
func (r *relay) vanish() { r.control.Close() }

func (r *relay) kill() { _ = r.cmd.Process.Kill() }

// discard is a frontend's end of a relay that the worker did not take.
func (r *relay) discard() {
	r.t.Helper()
	r.kill()
	r.code()
	if err := os.Remove(r.socket); err != nil {
		r.t.Error(err)
	}
}

// code waits for the end of the relay.
func (r *relay) code() int {
	r.t.Helper()
	select {
	case <-r.ended:
	case <-time.After(patience):
		r.t.Fatalf("relay %d does not end", r.process.PID)
	}
	if ws := r.cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return r.cmd.ProcessState.ExitCode()
}

func (r *relay) expectCode(want int) {
	r.t.Helper()
	if got := r.code(); got != want {
		r.t.Errorf("the relay ended with %d, want %d", got, want)
	}
}

func (r *relay) expectEnded() {
	r.t.Helper()
	r.code()
}

func kill15(r *relay) { _ = r.cmd.Process.Signal(syscall.SIGTERM) }

// kill9 kills a process, and returns when it has ended: a fake guest can answer until then, which the guest of a dead QEMU cannot.
func kill9(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if _, err := hypervisor.FindProcess(pid); errors.Is(err, hypervisor.ErrGone) {
			return
		}
	}
	t.Fatalf("process %d was killed and does not end", pid)
}

// children lists this process's children with a name in argv[0].
func children(name string) []int {
	var pids []int
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, f := range tasks {
		text, _ := os.ReadFile(f)
		for _, field := range bytes.Fields(text) {
			pid, err := strconv.Atoi(string(field))
			if err != nil {
				continue
			}
			argv, _ := os.ReadFile("/proc/" + string(field) + "/cmdline")
			if bytes.HasPrefix(argv, []byte(name+"\x00")) {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
