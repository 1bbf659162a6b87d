// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/test/e2e/host"
)

// TestMemoryIsFollowedThroughDeathsOfTheDaemon: the daemon is killed while a VM grows towards 1 GiB and while it shrinks. The
// container has its memory all the same, and QEMU, guest and records agree on the size afterwards.
func TestMemoryIsFollowedThroughDeathsOfTheDaemon(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	h := newHost(t, "resize", host.Settings{NoPool: true})
	if err := h.Start(within(t, launchTime)); err != nil {
		t.Fatal(err)
	}
	stopAtEnd(t, h)
	o := newOCI(t, h)
	conn := dial(t, h)
	limit, id := int64(1280*mib), newID("resize")
	spec := newSpec("sleep", "1000")
	spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
	m := o.launch(id, spec)
	defer o.remove(id)
	defer consolesOnFailure(t)
	vm := o.sandbox(conn, id)
	base := vm.GetMemoryBytes()
	peak := func() <-chan host.Result {
		ended := make(chan host.Result, 1)
		args := o.host.Args(o.root, "exec", id, "dd", "if=/dev/zero", "of=/dev/null", "bs=1024M", "count=1")
		ctx := within(t, launchTime)
		go func() {
			r, err := host.Run(ctx, nil, nil, args...)
			if err != nil {
				r.Stderr += err.Error()
			}
			ended <- r
		}()
		return ended
	}
	succeeds := func(what string, ended <-chan host.Result) {
		t.Helper()
		if r := <-ended; r.Code != 0 {
			t.Fatalf("%s ends with %d: %s", what, r.Code, r.Stderr)
		}
	}
	// die waits for a size of the guest's, as the agent tells it, and kills the daemon there.
	die := func(what string, there func(total uint64) bool) {
		t.Helper()
		var last uint64
		must(t, launchTime, func() error {
			if last = guestTotal(t, conn, vm.GetId()); last == 0 || !there(last) {
				return fmt.Errorf("%s: the guest has %d MiB", what, last/mib)
			}
			return nil
		})
		killDaemon(t, h)
		size := askQEMU(t, h, vm.GetId())
		t.Logf("killed %s: the guest had %d MiB, QEMU %d MiB", what, last/mib, size/mib)
		restart(t, h)
		conn = dial(t, h)
	}

	first := peak()
	die("while it grows", func(total uint64) bool { return total > base })
	succeeds("a peak during which the daemon died", first)
	var most uint64
	die("while it shrinks", func(total uint64) bool {
		less := total < most*9/10
		most = max(most, total)
		return less
	})
	expect(t, "the status after two deaths of the daemon", o.status(id), "running")
	must(t, launchTime, func() error {
		if has := o.sandbox(conn, id).GetMemoryBytes(); has > base+256*mib {
			return fmt.Errorf("it still has %d MiB", has/mib)
		}
		return nil
	})
	succeeds("a peak after it", peak())

	// What each says of the size, while nothing moves: QEMU when the daemon is away, the record of before and after, the guest.
	must(t, commandTime, func() error {
		before := o.sandbox(conn, id).GetMemoryBytes()
		killDaemon(t, h)
		size := askQEMU(t, h, vm.GetId())
		restart(t, h)
		conn = dial(t, h)
		after, total := o.sandbox(conn, id).GetMemoryBytes(), guestTotal(t, conn, vm.GetId())
		// Some 16 MiB are the kernel's from its start, and it does not count them.
		if before != size || size != after || total > size || total+64*mib < size {
			return fmt.Errorf("the record has %d and then %d MiB, QEMU %d, the guest %d", before/mib, after/mib, size/mib, total/mib)
		}
		return nil
	})
	if text, err := os.ReadFile(filepath.Join(h.RunDir, "vm", vm.GetId(), "console.log")); err != nil || strings.Contains(strings.ToLower(string(text)), "out of memory") {
		t.Errorf("the guest's kernel has killed for want of memory, or its console cannot be read (%v):\n%s", err, text)
	}
	o.do("kill", id, "KILL")
	exits(t, m, 128+9)
}

// guestTotal is the memory of a VM as its guest tells it; 0 when it does not answer.
func guestTotal(t *testing.T, conn *bus.Conn, vm string) uint64 {
	t.Helper()
	reply, err := bus.Call[vmv1.StatsReply](within(t, commandTime), conn, conn.Subject("vm", "stats"), &vmv1.StatsRequest{})
	if err != nil {
		return 0
	}
	for _, m := range reply.GetVms() {
		if m.GetSandbox() == vm {
			return m.GetGuestTotalBytes()
		}
	}
	return 0
}

// askQEMU is the size of a VM as QEMU has it, asked on its monitor, which only a dead daemon leaves to others.
func askQEMU(t *testing.T, h *host.Host, vm string) uint64 {
	t.Helper()
	conn, err := net.Dial("unix", filepath.Join(h.RunDir, "vm", vm, "qmp.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(commandTime)); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(conn)
	ask := func(command string, reply any) {
		if _, err := fmt.Fprintf(conn, "{\"execute\": %q}\n", command); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() {
			var line struct{ Return, Error json.RawMessage }
			if err := json.Unmarshal(lines.Bytes(), &line); err != nil || line.Error != nil {
				t.Fatalf("QEMU answers %s to %s", lines.Bytes(), command)
			}
			if line.Return == nil {
				continue // its greeting, or an event
			}
			if err := json.Unmarshal(line.Return, reply); err != nil {
				t.Fatal(err)
			}
			return
		}
		t.Fatalf("QEMU's monitor ends: %v", lines.Err())
	}
	var nothing struct{}
	ask("qmp_capabilities", &nothing)
	var all struct {
		Base uint64 `json:"base-memory"`
	}
	ask("query-memory-size-summary", &all)
	var devices []struct {
		Type string
		Data struct{ Size uint64 }
	}
	ask("query-memory-devices", &devices)
	for _, d := range devices {
		if d.Type == "virtio-mem" { // the image is one as well
			return all.Base + d.Data.Size
		}
	}
	t.Fatalf("QEMU has no memory to grow by: %v", devices)
	return 0
}

// TestExecsAtAFullLimit: a container that lives at its limit, and in which something is killed at it again and again, can be looked
// at all the same, as engines do by health checks: each exec does what it should or says why not, and the agent answers.
func TestExecsAtAFullLimit(t *testing.T) {
	t.Parallel()
	const mib, execs = 1 << 20, 20
	o := newOCI(t, sharedHost(t))
	conn := dial(t, o.host)
	limit := int64(64 * mib)
	// Most of the limit is a file that cannot be given up; what wants the rest and more is killed each time.
	spec := newSpec("sh", "-c", "dd if=/dev/zero of=/full/file bs=1M count=40 && echo full; while :; do dd if=/dev/zero of=/dev/null bs=32M count=1; done")
	spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/full", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=60m"}})
	defer consolesOnFailure(t)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	succeeded, ends, slowest := 0, 0, time.Duration(0)
	for done := 0; done < execs; {
		id := newID("full")
		m := o.launch(id, spec)
		until(t, m, "full\n")
		for ; done < execs; done++ {
			<-tick.C
			began := time.Now()
			r := o.cli("exec", id, "echo", "healthy")
			slowest = max(slowest, time.Since(began))
			// The guest answers, unless the container has ended, of which the host hears a moment later: in the end there is
			// no other process that the kernel could kill.
			stopped, doubtful := false, r.Code != 0 && r.Code != 128+9 && !strings.Contains(r.Stderr, "OOM")
			must(t, deathTime, func() error {
				if stopped = o.status(id) == "stopped"; stopped {
					return nil
				}
				if doubtful {
					return fmt.Errorf("exec %d ends with %d and says %q, and the container runs", done, r.Code, r.Stderr)
				}
				_, err := bus.Call[vmv1.StatsReply](within(t, commandTime), conn, conn.Subject("vm", "stats"), &vmv1.StatsRequest{Ref: &vmv1.ContainerRef{Root: o.root, Id: id}})
				return err
			})
			if stopped {
				exits(t, m, 128+9)
				ends++
				break
			}
			switch {
			case r.Code == 0 && r.Stdout == "healthy\n":
				succeeded++
			case r.Code == 0:
				t.Errorf("exec %d succeeded and said %q, %q", done, r.Stdout, r.Stderr)
			case r.Code != 128+9: // the kernel chose this process
				sentence(t, r.Stderr, "OOM")
			}
		}
		o.do("delete", "--force", id)
		if ends > execs/4 {
			t.Fatalf("in %d execs the container ended %d times", done, ends)
		}
	}
	t.Logf("%d of %d execs succeeded, the slowest took %s; the container ended %d times", succeeded, execs, slowest, ends)
	if succeeded == 0 {
		t.Error("no exec succeeded")
	}
}
