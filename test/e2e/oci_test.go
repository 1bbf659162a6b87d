// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/test/e2e/host"
)

// ociUser calls the OCI command line as conmon and containerd's shim do.
type ociUser struct {
	t    *testing.T
	host *host.Host
	root string // --root
	dir  string // bundles and pid-files
}

func newOCI(t *testing.T, h *host.Host) ociUser {
	t.Helper()
	return ociUser{t: t, host: h, root: filepath.Join(ground.Dir, newID("root")), dir: t.TempDir()}
}

// cli runs a command, whatever its code. A command whose output something else
// keeps open fails the test: callers read it to its end.
func (o ociUser) cli(args ...string) host.Result {
	o.t.Helper()
	r, err := o.host.CLI(within(o.t, launchTime), o.root, args...)
	if err != nil {
		o.t.Fatalf("bulkhead %s: %v\nstdout: %s\nstderr: %s", strings.Join(args, " "), err, r.Stdout, r.Stderr)
	}
	return r
}

// do runs a command that must succeed, and gives what it printed.
func (o ociUser) do(args ...string) string {
	o.t.Helper()
	r := o.cli(args...)
	if r.Code != 0 {
		o.t.Fatalf("bulkhead %s ended with %d: %s", strings.Join(args, " "), r.Code, r.Stderr)
	}
	return r.Stdout
}

// fails runs a command that must end with a code and a text on stderr.
func (o ociUser) fails(code int, says string, args ...string) {
	o.t.Helper()
	r := o.cli(args...)
	if r.Code != code {
		o.t.Errorf("bulkhead %s ended with %d instead of %d", strings.Join(args, " "), r.Code, code)
	}
	if !strings.Contains(r.Stderr, says) {
		o.t.Errorf("bulkhead %s says %q without %q", strings.Join(args, " "), r.Stderr, says)
	}
}

// bundle makes a bundle.
func (o ociUser) bundle(spec *specs.Spec) string {
	o.t.Helper()
	dir := filepath.Join(o.dir, newID("bundle"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		o.t.Fatal(err)
	}
	if err := host.Bundle(dir, spec); err != nil {
		o.t.Fatal(err)
	}
	return dir
}

func (o ociUser) pidFile(id string) string { return filepath.Join(o.dir, id+".pid") }

// create creates a container below a monitor; it is deleted after the test.
func (o ociUser) create(id string, spec *specs.Spec, flags ...string) *host.Monitored {
	o.t.Helper()
	return o.createIn(id, o.bundle(spec), flags...)
}

// createIn is create with a bundle that is there.
func (o ociUser) createIn(id, bundle string, flags ...string) *host.Monitored {
	o.t.Helper()
	o.t.Cleanup(func() { o.remove(id) })
	args := append([]string{"create", "--bundle", bundle, "--pid-file", o.pidFile(id)}, flags...)
	m, err := host.Monitor(within(o.t, launchTime), o.pidFile(id), o.host.Args(o.root, append(args, id)...)...)
	if err != nil {
		o.t.Fatal(err)
	}
	if m.Code != 0 {
		o.t.Fatalf("create ended with %d: %s", m.Code, m.Stderr)
	}
	return m
}

// launch creates and starts.
func (o ociUser) launch(id string, spec *specs.Spec, flags ...string) *host.Monitored {
	o.t.Helper()
	m := o.create(id, spec, flags...)
	o.do("start", id)
	return m
}

// remove is "delete --force" for the end of a test, when its context is over.
func (o ociUser) remove(id string) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	if r, err := o.host.CLI(ctx, o.root, "delete", "--force", id); err != nil || r.Code != 0 {
		o.t.Errorf("delete --force %s: code %d, %v: %s", id, r.Code, err, r.Stderr)
	}
}

// state is what "state" prints.
func (o ociUser) state(id string) specs.State {
	o.t.Helper()
	var s specs.State
	if err := json.Unmarshal([]byte(o.do("state", id)), &s); err != nil {
		o.t.Fatal(err)
	}
	return s
}

func (o ociUser) status(id string) string { o.t.Helper(); return string(o.state(id).Status) }

// exits waits for a process and compares its exit status.
func exits(t *testing.T, m *host.Monitored, code int) {
	t.Helper()
	got, err := m.Wait(within(t, commandTime))
	if err != nil {
		t.Fatal(err)
	}
	if got != code {
		t.Errorf("process %d ended with %d instead of %d; stdout %q, stderr %q", m.PID, got, code, m.Stdout, m.Stderr)
	}
}

// wholeOutput waits for the end of a process's output.
func wholeOutput(t *testing.T, m *host.Monitored) string {
	t.Helper()
	select {
	case <-m.Closed:
		return m.Stdout.String()
	case <-time.After(commandTime):
		t.Fatalf("the output of process %d does not end; so far %q", m.PID, m.Stdout)
		return ""
	}
}

func until(t *testing.T, m *host.Monitored, text string) {
	t.Helper()
	if err := m.Stdout.Until(within(t, commandTime), text); err != nil {
		t.Fatalf("stdout: %v; stderr %q", err, m.Stderr)
	}
}

// dial connects to a host's bus until the test ends.
func dial(t *testing.T, h *host.Host) *bus.Conn {
	t.Helper()
	conn, err := h.Dial(within(t, commandTime))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

// list asks for the containers and VMs of this root.
func (o ociUser) list(conn *bus.Conn) *vmv1.ListReply {
	o.t.Helper()
	list, err := bus.Call[vmv1.ListReply](within(o.t, commandTime), conn, conn.Subject("vm", "list"), &vmv1.ListRequest{Root: o.root})
	if err != nil {
		o.t.Fatal(err)
	}
	return list
}

// sandbox is the VM of a container.
func (o ociUser) sandbox(conn *bus.Conn, id string) *vmv1.Sandbox {
	o.t.Helper()
	list := o.list(conn)
	for _, c := range list.GetContainers() {
		if c.GetRef().GetId() != id {
			continue
		}
		for _, s := range list.GetSandboxes() {
			if s.GetId() == c.GetSandbox() {
				return s
			}
		}
	}
	o.t.Fatalf("no VM of container %s in %v", id, list)
	return nil
}

// noTrace complains of anything that a root's container left behind: records,
// processes, cgroups, directories of VMs and relays.
func (o ociUser) noTrace(conn *bus.Conn, id string) error {
	ctx, cancel := context.WithTimeout(o.t.Context(), commandTime)
	defer cancel()
	list, err := bus.Call[vmv1.ListReply](ctx, conn, conn.Subject("vm", "list"), &vmv1.ListRequest{Root: o.root})
	if err != nil {
		return err
	}
	if n := len(list.GetContainers()); n > 0 {
		return fmt.Errorf("%d records: %v", n, list.GetContainers())
	}
	kv, err := conn.JetStream().KeyValue(ctx, bus.BucketContainers)
	if err != nil {
		return err
	}
	if _, err := kv.Get(ctx, bus.ContainerKey(o.root, id)); err == nil {
		return errors.New("its record is left")
	}
	cgroups, err := ground.Cgroups()
	if err != nil {
		return err
	}
	for _, path := range cgroups {
		if strings.Contains(path, id) {
			return fmt.Errorf("cgroup %s", path)
		}
	}
	return nil
}

// idle complains unless what a host runs and keeps is what it did when idle was
// made: no further QEMU, relay or file of them.
func newIdle(t *testing.T, h *host.Host) func() error {
	t.Helper()
	before, err := traces(h)
	if err != nil {
		t.Fatal(err)
	}
	return func() error {
		now, err := traces(h)
		if err != nil {
			return err
		}
		for _, trace := range now {
			if !slices.Contains(before, trace) {
				return errors.New(trace)
			}
		}
		return nil
	}
}

// traces are the VMs, relays and files of a host, but for the VMs that no container has.
func traces(h *host.Host) ([]string, error) {
	processes, err := ground.Processes()
	if err != nil {
		return nil, err
	}
	spare, spareProcesses := h.Spare()
	all, err := h.VMFiles()
	all = slices.DeleteFunc(all, func(file string) bool { return slices.Contains(spare, file) })
	for _, binary := range []string{"qemu-", "bulkhead-relay"} {
		for _, found := range host.Named(processes, binary) {
			if slices.Contains(spareProcesses, found.PID) {
				continue
			}
			all = append(all, "process "+found.String())
		}
	}
	return all, err
}

func newSpec(args ...string) *specs.Spec { return host.NewSpec(args...) }

// exec starts a detached process in a container, below a monitor.
func (o ociUser) exec(id string, flags ...string) *host.Monitored {
	o.t.Helper()
	pidFile := o.pidFile(newID("exec"))
	args := append([]string{"exec", "--detach", "--pid-file", pidFile}, flags...)
	m, err := host.Monitor(within(o.t, commandTime), pidFile, o.host.Args(o.root, append(args, id)...)...)
	if err != nil {
		o.t.Fatal(err)
	}
	if m.Code != 0 {
		o.t.Fatalf("exec ended with %d: %s", m.Code, m.Stderr)
	}
	return m
}

// is complains unless a value is the wanted one.
func is(got, want string) error {
	if got != want {
		return fmt.Errorf("it is %.300q instead of %q", got, want)
	}
	return nil
}

func listenConsole(t *testing.T, path string) (*host.Console, error) {
	t.Helper()
	t.Cleanup(func() { os.Remove(path) })
	return host.ListenConsole(path)
}

// copyScreen collects what a terminal shows until it ends.
func copyScreen(master *os.File) *host.Output {
	screen := host.NewOutput()
	go func() { _, _ = io.Copy(screen, master) }()
	return screen
}

// processFile writes the process of an exec.
func (o ociUser) processFile(args ...string) string {
	o.t.Helper()
	text, err := json.Marshal(newSpec(args...).Process)
	if err != nil {
		o.t.Fatal(err)
	}
	path := filepath.Join(o.dir, newID("process")+".json")
	if err := os.WriteFile(path, text, 0o644); err != nil {
		o.t.Fatal(err)
	}
	return path
}

// allCapabilities are those that a container needs to do anything it likes with
// its own machine.
func allCapabilities() []string {
	return []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_RESOURCE", "CAP_SYS_RAWIO", "CAP_SYS_MODULE"}
}

// follow collects what a docker that goes on prints, until the test ends.
func (d dockerUser) follow(args ...string) *host.Output {
	d.t.Helper()
	args = d.engine.Args(args...)
	cmd := exec.CommandContext(d.t.Context(), args[0], args[1:]...)
	cmd.Env = append(cmd.Environ(), d.engine.Env()...)
	out := host.NewOutput()
	cmd.Stdout = out
	cmd.WaitDelay = host.HoldTime
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }() // ends with the container or the test
	return out
}

func TestOCIOwnersOfABindAreMapped(t *testing.T) {
	o := newOCI(t, sharedHost(t))
	dir := t.TempDir()
	write(t, filepath.Join(dir, "old"), "")
	shifted := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	// The last lines: the owners of a file that is there twice and open by both names at once.
	spec := newSpec("sh", "-c", "stat -c %u:%g /data/old; echo > /data/new; chown 100005:100006 /data/new; stat -c %u:%g /data/new; "+
		"exec 3</data/old 4</plain/old; stat -c %u:%g /data/old /plain/old; stat -Lc %u:%g /proc/self/fd/3 /proc/self/fd/4")
	spec.Mounts = append(spec.Mounts, specs.Mount{
		Destination: "/data", Type: "bind", Source: dir, Options: []string{"rbind", "idmap"}, UIDMappings: shifted, GIDMappings: shifted,
	}, specs.Mount{
		Destination: "/plain", Type: "bind", Source: dir, Options: []string{"rbind"},
	})
	expect(t, "what the container sees", o.do("run", "--bundle", o.bundle(spec), newID("mapped")),
		"100000:100000\n100005:100006\n"+strings.Repeat("100000:100000\n0:0\n", 2))
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "new"), &st); err != nil || st.Uid != 5 || st.Gid != 6 {
		t.Errorf("on disk the file is of %d:%d, %v", st.Uid, st.Gid, err)
	}
}
