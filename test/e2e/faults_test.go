// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"

	"bulkhead/bus"
	busv1 "bulkhead/proto/bus/v1"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/test/e2e/host"
)

// countedStream prints numbered lines in bursts for some seconds: 60 bursts of
// 1000 lines of 81 bytes.
const (
	streamBursts  = 60
	streamLines   = 1000
	countedStream = `n=0; while [ $n -lt 60 ]; do
awk -v n=$n 'BEGIN {for (i = 0; i < 1000; i++) printf "%010d 0123456789012345678901234567890123456789012345678901234567890123456789\n", n * 1000 + i}'
n=$((n+1)); sleep 0.1; done; exit 42`
)

func wantedStream() string {
	var b strings.Builder
	for i := range streamBursts * streamLines {
		fmt.Fprintf(&b, "%010d 0123456789012345678901234567890123456789012345678901234567890123456789\n", i)
	}
	return b.String()
}

// sameStream complains of the first difference.
func sameStream(t *testing.T, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	gotLines, wantLines := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i, line := range wantLines {
		if i >= len(gotLines) || gotLines[i] != line {
			seen := "nothing"
			if i < len(gotLines) {
				seen = gotLines[i]
			}
			t.Errorf("%d bytes came instead of %d; line %d is %.100q instead of %q", len(got), len(want), i, seen, line)
			return
		}
	}
	t.Errorf("%d bytes came instead of %d", len(got), len(want))
}

// restart starts the daemon again after a kill.
func restart(t *testing.T, h *host.Host) {
	t.Helper()
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func killDaemon(t *testing.T, h *host.Host) {
	t.Helper()
	if err := h.Kill(); err != nil {
		t.Fatal(err)
	}
}

// A death of the daemon loses no container, no byte of its output and no exit
// code. It dies twice while the container prints, and is away for a second each
// time.
func TestOutputAndExitCodeSurviveTheDeathOfTheDaemon(t *testing.T) {
	h := sharedHost(t)
	d := newDocker(t)
	name := d.launch(nil, "sh", "-c", countedStream)
	logs := d.follow("logs", "-f", name)
	for _, burst := range []int{10, 30} {
		if err := logs.Until(within(t, launchTime), fmt.Sprintf("%010d ", burst*streamLines)); err != nil {
			t.Fatal(err)
		}
		killDaemon(t, h)
		expect(t, "the state while the daemon is away", d.inspect(name, ".State.Status"), "running")
		time.Sleep(time.Second) // an outage in which output piles up
		restart(t, h)
	}
	expect(t, "the exit code", d.do("wait", name), "42")
	sameStream(t, d.do("logs", name)+"\n", wantedStream())
}

func TestAnExitDuringTheAbsenceOfTheDaemonIsNotLost(t *testing.T) {
	h := sharedHost(t)
	d := newDocker(t)
	name := d.launch(nil, "sh", "-c", "echo ready; sleep 2; echo last words; exit 42")
	d.says(name, "ready")
	killDaemon(t, h)
	time.Sleep(3 * time.Second) // it ends meanwhile
	restart(t, h)
	expect(t, "the exit code", d.do("wait", name), "42")
	expect(t, "the log", d.do("logs", name), "ready\nlast words")
	d.do("rm", name)
}

func TestInputSurvivesTheDeathOfTheDaemon(t *testing.T) {
	h := sharedHost(t)
	o := newOCI(t, h)
	id := newID("input")
	m := o.launch(id, newSpec("cat"))
	want := wantedStream()[:2<<20]
	wrote := make(chan error, 1)
	go func() {
		_, err := m.Stdin.WriteString(want)
		m.Stdin.Close()
		wrote <- err
	}()
	until(t, m, fmt.Sprintf("%010d ", 3000))
	killDaemon(t, h)
	restart(t, h)
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	exits(t, m, 0)
	sameStream(t, wholeOutput(t, m), want)
}

func TestEverythingWorksOnAfterARestartOfTheDaemon(t *testing.T) {
	h := sharedHost(t)
	o := newOCI(t, h)
	idle := newIdle(t, h)
	created, running, paused, stopped := newID("created"), newID("running"), newID("paused"), newID("stopped")
	c := o.create(created, newSpec("sh", "-c", "echo started; exit 6"))
	r := o.launch(running, newSpec("sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done"))
	until(t, r, "ready")
	o.launch(paused, newSpec("sh", "-c", "sleep 1000"))
	o.do("pause", paused)
	s := o.launch(stopped, newSpec("sh", "-c", "exit 8"))
	exits(t, s, 8)
	killDaemon(t, h)
	restart(t, h)
	for id, want := range map[string]string{created: "created", running: "running", paused: "paused", stopped: "stopped"} {
		expect(t, "the status of the "+want+" one", o.status(id), want)
	}
	expect(t, "an exec", o.do("exec", running, "echo", "works"), "works\n")
	o.do("kill", running, "TERM")
	exits(t, r, 7)
	o.do("start", created)
	exits(t, c, 6)
	expect(t, "its output", wholeOutput(t, c), "started\n")
	o.do("resume", paused)
	expect(t, "an exec", o.do("exec", paused, "echo", "works"), "works\n")
	for _, id := range []string{created, running, stopped} {
		o.do("delete", id)
	}
	o.do("delete", "--force", paused)
	must(t, cleanTime, idle)
}

// eventOf gives the last event of that name of a container, from the history.
func eventOf(conn *bus.Conn, id, name string) (*busv1.Event, error) {
	return lastEvent(conn, "container", id, name)
}

// lastEvent is eventOf for any kind of thing.
func lastEvent(conn *bus.Conn, kind, id, name string) (*busv1.Event, error) {
	ctx, cancel := context.WithTimeout(context.Background(), deathTime)
	defer cancel()
	stream, err := conn.JetStream().Stream(ctx, bus.EventStream)
	if err != nil {
		return nil, err
	}
	msg, err := stream.GetLastMsgForSubject(ctx, bus.EventSubject(conn.Host(), kind, id, name))
	if err != nil {
		return nil, fmt.Errorf("event %s of %s %s: %w", name, kind, id, err)
	}
	ev := &busv1.Event{}
	return ev, protojson.Unmarshal(msg.Data, ev)
}

// deadContainer starts a container, lets kill end its VM, and looks for the
// promises about that: 137 and a reason, soon, and nothing left.
func deadContainer(t *testing.T, script string, kill func(o ociUser, conn *bus.Conn, id string)) {
	t.Helper()
	h := sharedHost(t)
	o := newOCI(t, h)
	idle := newIdle(t, h)
	conn := dial(t, h)
	id := newID("dead")
	m := o.launch(id, newSpec("sh", "-c", script))
	x := o.exec(id, "--process", o.processFile("sleep", "1000"))
	until(t, m, "ready")
	vm := o.sandbox(conn, id)
	kill(o, conn, id)
	conn = dial(t, h) // the daemon may be another by now
	must(t, commandTime, func() error { return gone("/proc/" + strconv.Itoa(int(vm.GetPid()))) })
	must(t, deathTime, func() error { return is(o.status(id), "stopped") })
	must(t, deathTime, func() error {
		ev, err := eventOf(conn, id, "exited")
		if err != nil {
			return err
		}
		sentence(t, ev.GetAttributes()["reason"])
		return is(ev.GetAttributes()["exit_code"], "137")
	})
	exits(t, m, 137)
	exits(t, x, 137)
	list := o.list(conn)
	if len(list.GetContainers()) != 1 || list.GetContainers()[0].GetExit().GetReason() == "" {
		t.Errorf("the record gives no reason: %v", list.GetContainers())
	}
	o.do("delete", id)
	must(t, cleanTime, func() error { return o.noTrace(conn, id) })
	must(t, cleanTime, idle)
}

func TestTheDeathOfQEMUIsAnExitWithAReason(t *testing.T) {
	deadContainer(t, "echo ready; sleep 1000", func(o ociUser, conn *bus.Conn, id string) {
		if err := unix.Kill(int(o.sandbox(conn, id).GetPid()), unix.SIGKILL); err != nil {
			o.t.Fatal(err)
		}
	})
}

func TestTheDeathOfQEMUWhileTheDaemonIsAwayIsAnExitToo(t *testing.T) {
	deadContainer(t, "echo ready; sleep 1000", func(o ociUser, conn *bus.Conn, id string) {
		pid := int(o.sandbox(conn, id).GetPid())
		killDaemon(o.t, o.host)
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			o.t.Fatal(err)
		}
		restart(o.t, o.host)
	})
}

func TestDockerHearsOfTheDeathOfQEMU(t *testing.T) {
	h := sharedHost(t)
	d := newDocker(t)
	conn := dial(t, h)
	idle := newIdle(t, h)
	name := d.launch(nil, "sleep", "1000")
	id := d.inspect(name, ".Id")
	list, err := bus.Call[vmv1.ListReply](within(t, commandTime), conn, conn.Subject("vm", "list"), &vmv1.ListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	killed := false
	for _, c := range list.GetContainers() {
		for _, s := range list.GetSandboxes() {
			if c.GetRef().GetId() == id && s.GetId() == c.GetSandbox() {
				killed = unix.Kill(int(s.GetPid()), unix.SIGKILL) == nil
			}
		}
	}
	if !killed {
		t.Fatalf("no VM of %s in %v", id, list)
	}
	must(t, deathTime, func() error { return is(d.inspect(name, ".State.Status"), "exited") })
	expect(t, "the exit code", d.inspect(name, ".State.ExitCode"), "137")
	d.do("rm", name)
	must(t, cleanTime, idle)
}

// A crash of the guest's kernel takes the agent along. The container triggers it
// itself, after it made sure not to run on the host's kernel.
func TestACrashOfTheGuestKernelIsAnExitWithAReason(t *testing.T) {
	needsProduct(t)
	release, err := ground.KernelRelease()
	if err != nil {
		t.Fatal(err)
	}
	h := sharedHost(t)
	o := newOCI(t, h)
	idle := newIdle(t, h)
	conn := dial(t, h)
	id := newID("crash")
	spec := newSpec("sh", "-c", `test "$(uname -r)" = "`+release+`" || exit 99
echo ready; read line
mount -t proc none /mnt
if test -e /mnt/sysrq-trigger; then echo c > /mnt/sysrq-trigger; fi
echo 1 > /mnt/sys/vm/overcommit_memory; echo 2 > /mnt/sys/vm/panic_on_oom
dd if=/dev/zero of=/dev/null bs=4G count=1; exit 98`)
	all := allCapabilities()
	spec.Process.Capabilities.Bounding, spec.Process.Capabilities.Effective, spec.Process.Capabilities.Permitted = all, all, all
	m := o.launch(id, spec)
	until(t, m, "ready")
	if _, err := m.Stdin.WriteString("now\n"); err != nil {
		t.Fatal(err)
	}
	exits(t, m, 137)
	must(t, deathTime, func() error { return is(o.status(id), "stopped") })
	must(t, deathTime, func() error {
		ev, err := eventOf(conn, id, "exited")
		if err == nil {
			sentence(t, ev.GetAttributes()["reason"])
		}
		return err
	})
	o.do("delete", id)
	must(t, cleanTime, idle)
}

func TestTheDeathOfARelayIsTheEndOfItsContainer(t *testing.T) {
	h := sharedHost(t)
	d := newDocker(t)
	idle := newIdle(t, h)
	name := d.launch(nil, "sleep", "1000")
	pid, err := strconv.Atoi(d.inspect(name, ".State.Pid"))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	expect(t, "the exit code", d.do("wait", name), "137")
	d.do("rm", name)
	must(t, cleanTime, idle)
}

// Whoever calls create may be killed at any moment of it; nothing of the
// half-made container may stay.
func TestACreateThatIsKilledHalfWayLeavesNothing(t *testing.T) {
	h := sharedHost(t)
	o := newOCI(t, h)
	conn := dial(t, h)
	idle := newIdle(t, h)
	bundle := o.bundle(newSpec("sleep", "1000"))
	for _, delay := range []time.Duration{0, 20, 50, 100, 200, 400, 800, 1100, 1500} {
		delay *= time.Millisecond
		t.Run(delay.String(), func(t *testing.T) {
			o := ociUser{t, h, o.root, o.dir}
			id := newID("halfway")
			argv := o.host.Args(o.root, "create", "--bundle", bundle, "--pid-file", o.pidFile(id), id)
			cmd := exec.Command(argv[0], argv[1:]...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(delay)
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			if gone(o.pidFile(id)) != nil {
				t.Log("it was created in time")
				o.do("delete", "--force", id)
			}
			must(t, cleanTime, func() error { return o.noTrace(conn, id) })
			must(t, cleanTime, idle)
		})
	}
}

// The daemon may die at any moment of a create. Then the create fails with a
// sentence, or it succeeded; after a restart nothing else remains, in the container's
// network namespace either. The network of a container that runs works on.
func TestADaemonThatDiesDuringACreateLeavesNothing(t *testing.T) {
	h := sharedHost(t)
	o := newOCI(t, h)
	running, half := newWire(t), newWire(t)
	lasting := newOCI(t, h) // under a root of its own, as the others' must be empty
	steady := newID("steady")
	until(t, lasting.launch(steady, running.spec(t, nil, "netprobe", "serve", ":"+probePort)), "serving")
	reaches(t, running.outside, net.JoinHostPort(wireOwn4, probePort))
	conn, err := running.outside.Dial(within(t, launchTime), "tcp", net.JoinHostPort(wireOwn4, probePort))
	if err == nil {
		_, err = conn.Write([]byte("echo\n"))
	}
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	idle := newIdle(t, h)
	bundle := o.bundle(half.spec(t, nil, "sleep", "1000"))
	for _, delay := range []time.Duration{100, 400, 700, 900, 1100, 1300, 1500} {
		delay *= time.Millisecond
		t.Run(delay.String(), func(t *testing.T) {
			o := ociUser{t, h, o.root, o.dir}
			id := newID("orphaned")
			type outcome struct {
				host.Result
				err error
			}
			ended := make(chan outcome, 1)
			ctx := within(t, launchTime)
			go func() {
				r, err := h.CLI(ctx, o.root, "create", "--bundle", bundle, "--pid-file", o.pidFile(id), id)
				ended <- outcome{r, err}
			}()
			time.Sleep(delay)
			killDaemon(t, h)
			echoByte(t, conn) // while nobody is there
			restart(t, h)
			out := <-ended
			switch {
			case out.Code == 0:
				t.Log("it was created in time")
				o.do("delete", "--force", id)
			case out.err != nil:
				t.Errorf("create: %v: %s", out.err, out.Stderr)
			default:
				t.Logf("it was not created: %s", out.Stderr)
				sentence(t, out.Stderr)
				if err := gone(o.pidFile(id)); err != nil {
					t.Error(err)
				}
			}
			conn := dial(t, h)
			must(t, cleanTime, func() error { return o.noTrace(conn, id) })
			must(t, cleanTime, idle)
			must(t, cleanTime, func() error { return half.untouched(t) })
		})
	}
	echoByte(t, conn)
	reaches(t, running.outside, net.JoinHostPort(wireOwn4, probePort))
	lasting.do("exec", steady, "ping", "-c", "1", "-W", "60", wireFar4)
	lasting.do("delete", "--force", steady)
	must(t, cleanTime, func() error { return running.untouched(t) })
}
