// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bulkhead/bus"
	"bulkhead/bus/bustest"
	"bulkhead/bus/handover"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/runtime-frontend/shadow"
)

// host is a bus with a scripted vm service and a socket for descriptors: all
// of a host that the command line speaks to.
type host struct {
	t       testing.TB
	bus     *bustest.Bus
	service *bus.Service
	config  string
	root    string

	mu       sync.Mutex // guards what follows
	records  map[string]*vmv1.Container
	creates  []*vmv1.CreateRequest
	execs    []*vmv1.ExecRequest
	kills    []*vmv1.KillRequest
	deletes  []*vmv1.DeleteRequest
	handed   map[string]int // descriptors by token
	relays   []*testRelay
	specs    []shadow.Spec
	onCreate func(*vmv1.CreateRequest) error // after the record is there
	onExec   func(*vmv1.ExecRequest) error
	onStart  func(*vmv1.Container) error
	console  error // what SendConsole of relays says
	exit     int   // what Wait of relays says
	netns    string
}

func newHost(t testing.TB) *host {
	t.Helper()
	h := &host{t: t, bus: bustest.Start(t), root: "/run/test", records: map[string]*vmv1.Container{}, handed: map[string]int{}}
	h.config = filepath.Join(t.TempDir(), "bulkhead.toml")
	text := fmt.Sprintf("[host]\nid = %q\nrun_dir = %q\n", bustest.Host, h.bus.RunDir)
	if err := os.WriteFile(h.config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	svc, err := bus.NewService(context.Background(), h.bus.Conn(), bus.ServiceConfig{Name: "vm"})
	if err != nil {
		t.Fatal(err)
	}
	h.service = svc
	h.serve()
	if err := h.bus.Conn().NATS().Flush(); err != nil { // the server has heard of every method
		t.Fatal(err)
	}
	h.takeDescriptors()
	t.Cleanup(func() {
		for _, r := range h.relays {
			r.Kill()
		}
		if err := svc.Stop(context.Background()); err != nil {
			t.Errorf("stopping the service: %v", err)
		}
	})
	return h
}

// handle adds a method that runs under the host's lock.
func handle[Req, Resp proto.Message](h *host, method string, fn func(Req) (Resp, error)) {
	h.t.Helper()
	err := bus.Handle(h.service, method, func(_ context.Context, req Req) (Resp, error) {
		h.mu.Lock()
		defer h.mu.Unlock()
		return fn(req)
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) find(ref *vmv1.ContainerRef) (*vmv1.Container, error) {
	record, ok := h.records[bus.ContainerKey(ref.GetRoot(), ref.GetId())]
	if !ok {
		return nil, bus.Errorf(bus.NotFound, "container does not exist")
	}
	return record, nil
}

// serve answers with runc's rules and words, as the worker does.
func (h *host) serve() {
	handle(h, "create", func(req *vmv1.CreateRequest) (*vmv1.CreateReply, error) {
		h.creates = append(h.creates, req)
		if _, err := h.find(req.GetRef()); err == nil {
			return nil, bus.Errorf(bus.AlreadyExists, "container with given ID already exists")
		}
		var spec specs.Spec
		if err := json.Unmarshal([]byte(req.GetConfig()), &spec); err != nil {
			return nil, err
		}
		record := &vmv1.Container{
			Ref: req.GetRef(), Status: vmv1.ContainerStatus_CONTAINER_STATUS_CREATED, Bundle: req.GetBundle(), Rootfs: req.GetRootfs(),
			OciVersion: spec.Version, Annotations: spec.Annotations, Relay: req.GetRelay(), Created: timestamppb.Now(), Owner: req.GetOwner(),
			OperationId: req.GetHandover(),
		}
		key := bus.ContainerKey(req.GetRef().GetRoot(), req.GetRef().GetId())
		h.records[key] = record
		if h.onCreate != nil {
			if err := h.onCreate(req); err != nil {
				return nil, err
			}
		}
		return &vmv1.CreateReply{Container: record}, nil
	})
	handle(h, "start", func(req *vmv1.StartRequest) (*vmv1.StartReply, error) {
		record, err := h.find(req.GetRef())
		if err != nil {
			return nil, err
		}
		if h.onStart != nil {
			if err := h.onStart(record); err != nil {
				return nil, err
			}
		}
		switch record.GetStatus() {
		case vmv1.ContainerStatus_CONTAINER_STATUS_CREATED:
		case vmv1.ContainerStatus_CONTAINER_STATUS_STOPPED:
			return nil, bus.Errorf(bus.FailedPrecondition, "cannot start a container that has stopped")
		default:
			return nil, bus.Errorf(bus.FailedPrecondition, "cannot start an already running container")
		}
		record.Status = vmv1.ContainerStatus_CONTAINER_STATUS_RUNNING
		return &vmv1.StartReply{Container: record}, nil
	})
	handle(h, "state", func(req *vmv1.StateRequest) (*vmv1.StateReply, error) {
		record, err := h.find(req.GetRef())
		return &vmv1.StateReply{Container: record}, err
	})
	handle(h, "list", func(*vmv1.ListRequest) (*vmv1.ListReply, error) {
		reply := &vmv1.ListReply{}
		for _, record := range h.records {
			reply.Containers = append(reply.Containers, record)
		}
		return reply, nil
	})
	handle(h, "kill", func(req *vmv1.KillRequest) (*vmv1.KillReply, error) {
		h.kills = append(h.kills, req)
		record, err := h.find(req.GetRef())
		if err != nil {
			return nil, err
		}
		if record.GetStatus() == vmv1.ContainerStatus_CONTAINER_STATUS_STOPPED {
			return nil, bus.Errorf(bus.FailedPrecondition, "container not running")
		}
		return &vmv1.KillReply{}, nil
	})
	handle(h, "delete", func(req *vmv1.DeleteRequest) (*vmv1.DeleteReply, error) {
		h.deletes = append(h.deletes, req)
		record, err := h.find(req.GetRef())
		if err != nil {
			return nil, err
		}
		if record.GetStatus() == vmv1.ContainerStatus_CONTAINER_STATUS_RUNNING && !req.GetForce() {
			return nil, bus.Errorf(bus.FailedPrecondition, "cannot delete container %s that is not stopped: running", req.GetRef().GetId())
		}
		delete(h.records, bus.ContainerKey(req.GetRef().GetRoot(), req.GetRef().GetId()))
		return &vmv1.DeleteReply{Container: record, Existed: true}, nil
	})
	handle(h, "exec", func(req *vmv1.ExecRequest) (*vmv1.ExecReply, error) {
		h.execs = append(h.execs, req)
		if h.onExec != nil {
			if err := h.onExec(req); err != nil {
				return nil, err
			}
		}
		return &vmv1.ExecReply{Channel: 1}, nil
	})
	handle(h, "processes", func(req *vmv1.ProcessesRequest) (*vmv1.ProcessesReply, error) {
		record, err := h.find(req.GetRef())
		if err != nil {
			return nil, err
		}
		reply := &vmv1.ProcessesReply{}
		if record.GetStatus() != vmv1.ContainerStatus_CONTAINER_STATUS_STOPPED {
			reply.Pids = []int32{record.GetRelay().GetPid()}
		}
		return reply, nil
	})
	handle(h, "pause", func(req *vmv1.PauseRequest) (*vmv1.PauseReply, error) {
		record, err := h.find(req.GetRef())
		if err != nil {
			return nil, err
		}
		record.Status = vmv1.ContainerStatus_CONTAINER_STATUS_PAUSED
		return &vmv1.PauseReply{}, nil
	})
	handle(h, "resume", func(req *vmv1.ResumeRequest) (*vmv1.ResumeReply, error) {
		record, err := h.find(req.GetRef())
		if err != nil {
			return nil, err
		}
		if record.GetStatus() != vmv1.ContainerStatus_CONTAINER_STATUS_PAUSED {
			return nil, bus.Errorf(bus.FailedPrecondition, "container not paused")
		}
		record.Status = vmv1.ContainerStatus_CONTAINER_STATUS_RUNNING
		return &vmv1.ResumeReply{}, nil
	})
}

// takeDescriptors is the worker's end of the handover.
func (h *host) takeDescriptors() {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(h.bus.RunDir, handoverSocket)}); err != nil {
		h.t.Fatal(err)
	}
	if err := unix.Listen(fd, 8); err != nil {
		h.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, _, err := unix.Accept(fd)
			if err != nil {
				return
			}
			h.takeFrom(conn)
			unix.Close(conn)
		}
	}()
	h.t.Cleanup(func() {
		unix.Shutdown(fd, unix.SHUT_RDWR)
		<-done
		unix.Close(fd)
	})
}

func (h *host) takeFrom(conn int) {
	text, rights := make([]byte, handover.MaxPacket), make([]byte, 4096)
	for {
		n, rn, _, _, err := unix.Recvmsg(conn, text, rights, unix.MSG_CMSG_CLOEXEC)
		if err != nil || n == 0 {
			return
		}
		var packet handover.Packet
		if err := json.Unmarshal(text[:n], &packet); err != nil {
			h.t.Errorf("handover packet %q: %v", text[:n], err)
			return
		}
		messages, _ := unix.ParseSocketControlMessage(rights[:rn])
		for _, m := range messages {
			fds, _ := unix.ParseUnixRights(&m)
			h.mu.Lock()
			h.handed[packet.Token] += len(fds)
			h.mu.Unlock()
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
		if packet.Last {
			unix.Write(conn, []byte(`{"ok":true}`))
			return
		}
	}
}

// testRelay is a process in a network namespace of its own that does nothing.
type testRelay struct {
	h         *host
	cmd       *exec.Cmd
	spec      shadow.Spec
	committed bool
	killed    bool
	once      sync.Once
}

func (h *host) startRelay(_ context.Context, spec shadow.Spec) (hostProcess, error) {
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if h.netns == "" {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r := &testRelay{h: h, cmd: cmd, spec: spec}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.relays = append(h.relays, r)
	h.specs = append(h.specs, spec)
	return r, nil
}

func (r *testRelay) Identity() *vmv1.Relay {
	return &vmv1.Relay{Pid: int32(r.cmd.Process.Pid), Socket: "/relay.sock"}
}
func (r *testRelay) SendConsole() error                { return r.h.console }
func (r *testRelay) Commit() error                     { r.committed = true; return nil }
func (r *testRelay) Wait(context.Context) (int, error) { return r.h.exit, nil }
func (r *testRelay) Kill() error {
	r.once.Do(func() {
		r.killed = true
		r.cmd.Process.Kill()
		r.cmd.Wait()
	})
	return nil
}

func (h *host) lastRelay() *testRelay { return h.relays[len(h.relays)-1] }
func (h *host) record(id string) (*vmv1.Container, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	record, ok := h.records[bus.ContainerKey(h.root, id)]
	return record, ok
}

// result is what a caller sees of a command.
type result struct {
	status         int
	stdout, stderr string
	log            string
}

// run runs a command line as an engine does, with --root, --log and the test's configuration before the command.
func (h *host) run(args ...string) result {
	h.t.Helper()
	return h.runWith([]string{"--root", h.root, "--config", h.config, "--log-format", "json"}, args...)
}

func (h *host) runWith(global []string, args ...string) result {
	h.t.Helper()
	dir := h.t.TempDir()
	log := filepath.Join(dir, "log.json")
	open := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			h.t.Fatal(err)
		}
		return f
	}
	stdin, err := os.Open(os.DevNull)
	if err != nil {
		h.t.Fatal(err)
	}
	std := Streams{In: stdin, Out: open("stdout"), Err: open("stderr")}
	line := append([]string{"bulkhead", "--log", log}, append(global, args...)...)
	status := runLine(context.Background(), line, &globals{std: std, startRelay: h.startRelay})
	for _, f := range []*os.File{std.In, std.Out, std.Err} {
		f.Close()
	}
	read := func(path string) string {
		text, _ := os.ReadFile(path)
		return string(text)
	}
	return result{status, read(std.Out.Name()), read(std.Err.Name()), read(log)}
}

// lines decodes a log as go-runc does: one object after the other.
func (r result) lines(t testing.TB) []line {
	t.Helper()
	var lines []line
	dec := json.NewDecoder(strings.NewReader(r.log))
	for {
		var l line
		err := dec.Decode(&l)
		if err == io.EOF {
			return lines
		}
		if err != nil {
			t.Fatalf("log %q: %v", r.log, err)
		}
		lines = append(lines, l)
	}
}

// fails holds a result against a failure's form: the status, the sentence on
// stderr, and the same once in the log.
func (r result) fails(t testing.TB, status int, want string) {
	t.Helper()
	if r.status != status {
		t.Errorf("exit status %d, want %d (stderr %q)", r.status, status, r.stderr)
	}
	if !strings.Contains(r.stderr, want) {
		t.Errorf("stderr %q lacks %q", r.stderr, want)
	}
	lines := r.lines(t)
	if len(lines) != 1 || lines[0].Level != "error" || lines[0].Msg != strings.TrimSpace(r.stderr) {
		t.Errorf("log %q, stderr %q: want the one error in both", r.log, r.stderr)
	}
	if r.stdout != "" {
		t.Errorf("stdout %q", r.stdout)
	}
}

func (r result) succeeds(t testing.TB) result {
	t.Helper()
	if r.status != 0 || r.stderr != "" || r.log != "" {
		t.Fatalf("exit status %d, stderr %q, log %q", r.status, r.stderr, r.log)
	}
	return r
}

// bundle writes a bundle that can be run, changed by edit.
func (h *host) bundle(edit func(*specs.Spec)) string {
	h.t.Helper()
	dir := h.t.TempDir()
	spec := exampleSpec()
	spec.Process.Terminal = false
	if edit != nil {
		edit(spec)
	}
	text, err := json.Marshal(spec)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o644); err != nil {
		h.t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "rootfs"), 0o755); err != nil {
		h.t.Fatal(err)
	}
	return dir
}

// created gives a container in the state that create leaves.
func (h *host) created(id string, edit func(*specs.Spec)) string {
	h.t.Helper()
	dir := h.bundle(edit)
	h.run("create", "--bundle", dir, id).succeeds(h.t)
	return dir
}

func (h *host) setStatus(id string, status vmv1.ContainerStatus) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.records[bus.ContainerKey(h.root, id)].Status = status
}

// script makes a hook that runs a shell script.
func script(t *testing.T, text string) specs.Hook {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hook")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return specs.Hook{Path: path, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}}
}

// waitExited waits for the end of a child and leaves it as a zombie.
func waitExited(pid int) error {
	return unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
}

// addBridge puts an interface into the network namespace of a process.
func addBridge(t *testing.T, pid int) {
	t.Helper()
	out, err := exec.Command("nsenter", "-t", fmt.Sprint(pid), "-n", "ip", "link", "add", "eth9", "type", "bridge").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
