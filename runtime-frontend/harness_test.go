// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"bulkhead/bus"
	"bulkhead/bus/bustest"
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
	configs  map[string]string // config.json texts, kept as the worker keeps them
	creates  []*vmv1.CreateRequest
	execs    []*vmv1.ExecRequest
	kills    []*vmv1.KillRequest
	deletes  []*vmv1.DeleteRequest
	updates  []*vmv1.UpdateRequest
	handed   map[string]int // descriptors by token
	relays   []*testRelay
	specs    []shadow.Spec
	onCreate func(*vmv1.CreateRequest) error // after the record is there
	onExec   func(*vmv1.ExecRequest) error
	onStart  func(*vmv1.Container) error
	console  error // what SendConsole of relays says
	exit     int   // what Wait of relays says
	netns    string
	stdin    string        // what commands read
	asked    chan struct{} // told of each request for statistics, if anybody listens
}

func newHost(t testing.TB) *host {
	t.Helper()
	h := &host{t: t, bus: bustest.Start(t), root: "/run/test", records: map[string]*vmv1.Container{}, configs: map[string]string{}, handed: map[string]int{}}
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
	input := filepath.Join(dir, "stdin")
	if err := os.WriteFile(input, []byte(h.stdin), 0o600); err != nil {
		h.t.Fatal(err)
	}
	stdin, err := os.Open(input)
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
