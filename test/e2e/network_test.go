// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bulkhead/test/e2e/engine"
	"bulkhead/test/e2e/host"
)

// probePort is where a netprobe listens; HTTP is on the next one.
const (
	probePort = "7000"
	webPort   = "7001"
)

// probe is the path of test/netprobe, which is both ends of a connection.
var probe = struct {
	once sync.Once
	path string
	err  error
}{}

func probeProgram(t *testing.T) string {
	t.Helper()
	probe.once.Do(func() {
		probe.path = filepath.Join(ground.Data, "netprobe")
		build := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w", "-o", probe.path, "../netprobe")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			probe.err = fmt.Errorf("build netprobe: %w: %s", err, out)
		}
	})
	if probe.err != nil {
		t.Fatal(probe.err)
	}
	return probe.path
}

// withProbe are the options by which a container has it.
func withProbe(t *testing.T) []string {
	t.Helper()
	return opts("-v", probeProgram(t)+":/bin/netprobe:ro")
}

// probeIn runs a netprobe beside containers; it must succeed.
func probeIn(t *testing.T, n *host.Netns, args ...string) string {
	t.Helper()
	argv := n.Args(append([]string{probeProgram(t)}, args...)...)
	r, err := host.Run(within(t, launchTime), nil, nil, argv...)
	if err != nil || r.Code != 0 {
		t.Fatalf("netprobe %s: %v, code %d: %s", strings.Join(args, " "), err, r.Code, r.Stderr)
	}
	return strings.TrimSpace(r.Stdout)
}

// serveIn runs a netprobe that serves beside containers, until the test ends.
func serveIn(t *testing.T, n *host.Netns) {
	t.Helper()
	argv := n.Args(probeProgram(t), "serve", ":"+probePort)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("netprobe says %q: %v", line, err)
	}
}

// ipIn and tcIn run commands of iproute2 beside containers.
func ipIn(t *testing.T, n *host.Netns, args ...string) string {
	t.Helper()
	return inNetns(t, n, append([]string{"ip"}, args...)...)
}

func tcIn(t *testing.T, n *host.Netns, args ...string) string {
	t.Helper()
	return inNetns(t, n, append([]string{"tc"}, args...)...)
}

func inNetns(t *testing.T, n *host.Netns, argv ...string) string {
	t.Helper()
	r, err := host.Run(within(t, commandTime), nil, nil, n.Args(argv...)...)
	if err != nil || r.Code != 0 {
		t.Fatalf("%s: %v, code %d: %s", strings.Join(argv, " "), err, r.Code, r.Stderr)
	}
	return r.Stdout
}

// reaches waits until a netprobe answers at an address, tried from beside
// containers, and gives the time that this took.
func reaches(t *testing.T, n *host.Netns, address string) time.Duration {
	t.Helper()
	began := time.Now()
	must(t, launchTime, func() error {
		conn, err := n.Dial(within(t, time.Second), "tcp", address)
		if err != nil {
			return err
		}
		defer conn.Close()
		return echo(conn)
	})
	return time.Since(began)
}

// echo asks for a word back.
func echo(conn net.Conn) error {
	const word = "echo\nmoored"
	if err := conn.SetDeadline(time.Now().Add(echoTime)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte(word)); err != nil {
		return err
	}
	got := make([]byte, len(word)-len("echo\n"))
	for n := 0; n < len(got); {
		more, err := conn.Read(got[n:])
		if err != nil {
			return err
		}
		n += more
	}
	if string(got) != word[len("echo\n"):] {
		return fmt.Errorf("%q came back", got)
	}
	return nil
}

// echoTime bounds one answer on a busy machine.
const echoTime = 20 * time.Second

// network makes a network of Docker's, which goes after the test.
func (d dockerUser) network(options ...string) string {
	d.t.Helper()
	name := newID("network")
	d.t.Cleanup(func() { d.client().cleanUp(opts("No such network"), "network", "rm", name) })
	d.do(append(append([]string{"network", "create"}, options...), name)...)
	return name
}

// onNetwork are the arguments of "docker run" with a runtime on a network; that
// without a name is the one that Docker takes when none is asked for.
func (d dockerUser) onNetwork(runtime, network string, options []string, command ...string) []string {
	d.t.Helper()
	args := append([]string{"run", "--runtime", runtime}, withProbe(d.t)...)
	if network != "" {
		args = append(args, "--network", network)
	}
	return append(append(append(args, options...), engine.Image), command...)
}

// launchOn is "docker run -d" with a runtime on a network.
func (d dockerUser) launchOn(runtime, network string, options []string, command ...string) string {
	d.t.Helper()
	name := newID("net")
	d.t.Cleanup(func() { d.remove(name) })
	d.do(d.onNetwork(runtime, network, append([]string{"-d", "--name", name}, options...), command...)...)
	return name
}

// serveOn launches a container that serves, and waits until it does.
func (d dockerUser) serveOn(runtime, network string, options ...string) string {
	d.t.Helper()
	name := d.launchOn(runtime, network, options, "netprobe", "serve", ":"+probePort)
	d.says(name, "serving")
	return name
}

// endpoint gives a field of what a container has in a network.
func (d dockerUser) endpoint(name, network, field string) string {
	d.t.Helper()
	return d.inspect(name, fmt.Sprintf("(index .NetworkSettings.Networks %q).%s", network, field))
}

// probe runs a netprobe in a container; it must succeed.
func (d dockerUser) probe(name string, args ...string) string {
	d.t.Helper()
	return d.do(append([]string{"exec", name, "netprobe"}, args...)...)
}

// script runs a shell in a container; it must succeed.
func (d dockerUser) script(name, text string) string {
	d.t.Helper()
	return d.do("exec", name, "sh", "-c", text)
}

// neighbour is the runtime of containers beside the one that is tested.
const neighbour = "runc"
