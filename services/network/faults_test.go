// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"bulkhead/bus"
	"bulkhead/bus/config"
	netv1 "bulkhead/proto/net/v1"
)

// The environment by which the test's binary is the service, on the bus of a run
// directory, and the step at which it is killed.
const (
	envRunDir = "BULKHEAD_NETWORK_TEST_RUN_DIR"
	envKillAt = "BULKHEAD_NETWORK_TEST_KILL_AT"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(envRunDir); dir != "" {
		if err := serveAlone(dir, os.Getenv(envKillAt)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// serveAlone is the service as a process of its own, which ends with its input.
func serveAlone(dir, killAt string) error {
	ctx := context.Background()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	conn, err := bus.Dial(ctx, dir, "network", bus.Persistent())
	if err != nil {
		return err
	}
	return Run(ctx, Deps{
		Conn: conn, RunDir: dir, Config: config.Default().Network, Version: "0.0.0",
		Failpoint: func(step string) error {
			if step == killAt {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
			return nil
		},
		Serving: func() {
			_ = conn.NATS().Flush()
			fmt.Println("serving")
		},
	})
}

// alone runs the service as a process of its own. ended is closed with it.
func (r *rig) alone(killAt string, wrap ...string) (cmd *exec.Cmd, ended <-chan struct{}) {
	r.t.Helper()
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	args := append(wrap, self)
	cmd = exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), envRunDir+"="+r.bus.RunDir, envKillAt+"="+killAt)
	cmd.Stderr = os.Stderr
	if _, err := cmd.StdinPipe(); err != nil {
		r.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	line := make([]byte, 8)
	if _, err := out.Read(line); err != nil {
		r.t.Fatalf("the service alone does not start: %v", err)
	}
	gone := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(gone)
	}()
	r.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-gone
	})
	return cmd, gone
}

// untilDeath asks a service that dies of the request.
func (r *rig) untilDeath(ended <-chan struct{}, method string, ask func(ctx context.Context, subject string) error) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	go func() {
		<-ended
		cancel()
	}()
	_ = ask(ctx, r.bus.Conn().Subject("net", method))
	select {
	case <-ended:
	default:
		r.t.Fatalf("%s was answered, and not died of", method)
	}
}

// stepsOf records the steps of an attach and a detach.
func stepsOf(t *testing.T, model string) (attach, detach []string) {
	t.Helper()
	var mu sync.Mutex
	var seen []string
	r := newRig(t, func(d *Deps) {
		d.Config.Model = model
		d.Failpoint = func(step string) error {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, step)
			return nil
		}
	}).start()
	inside, outside := newSpace(t), newSpace(t)
	inside.veth("eth0", outside, "out0")
	inside.run("ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0")
	r.attach("box", inside)
	r.stop() // nothing follows, so nothing but the detach has steps
	mu.Lock()
	n := len(seen)
	for _, s := range seen {
		if s != "changed-record" && !slices.Contains(attach, s) {
			attach = append(attach, s)
		}
	}
	mu.Unlock()
	r.start()
	r.detach("box")
	mu.Lock()
	defer mu.Unlock()
	for _, s := range seen[n:] {
		if !slices.Contains(attach, s) && s != "changed-record" && !slices.Contains(detach, s) {
			detach = append(detach, s)
		}
	}
	if len(attach) < 6 || len(detach) < 5 {
		t.Fatalf("model %s has the steps %v and %v only: this would show nothing", model, attach, detach)
	}
	return attach, detach
}

var models = []string{"tc", "macvtap", "bridge"}

// faultGround is a namespace to be attached, and what it is before.
func faultGround(t *testing.T) (inside *space, before string) {
	inside, outside := newSpace(t), newSpace(t)
	inside.veth("eth0", outside, "out0")
	inside.run("ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0; ip route add default via 10.9.0.1")
	inside.settle("eth0")
	return inside, inside.state()
}

func TestAServiceKilledAtAnyStepLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, model := range models {
		t.Run(model, func(t *testing.T) {
			t.Parallel()
			attachSteps, detachSteps := stepsOf(t, model)
			r := newRig(t)
			inside, before := faultGround(t)
			request := &netv1.AttachRequest{Sandbox: "box", Namespace: &netv1.Namespace{Pid: inside.pid()}, Policy: &netv1.Policy{Model: model}}
			for _, step := range attachSteps {
				_, ended := r.alone(step)
				r.untilDeath(ended, "attach", func(ctx context.Context, subject string) error {
					_, err := bus.Call[netv1.AttachReply](ctx, r.bus.Conn(), subject, request)
					return err
				})
				r.start()
				if left := call[netv1.ListReply](r, "list", &netv1.ListRequest{}); len(left.Attachments) != 0 {
					t.Errorf("killed at step %s of attach: still attached: %v", step, left)
				}
				if after := inside.state(); after != before {
					t.Errorf("killed at step %s of attach: the namespace is not as before:%s", step, unlike(before, after))
				}
				r.stop()
			}
			for _, step := range detachSteps {
				_, ended := r.alone(step)
				call[netv1.AttachReply](r, "attach", request)
				r.untilDeath(ended, "detach", func(ctx context.Context, subject string) error {
					_, err := bus.Call[netv1.DetachReply](ctx, r.bus.Conn(), subject, &netv1.DetachRequest{Sandbox: "box"})
					return err
				})
				r.start()
				if step == "detaching-record" { // nothing was taken back yet, so it is whole, and the caller asks again
					if left := call[netv1.ListReply](r, "list", &netv1.ListRequest{}); len(left.Attachments) != 1 {
						t.Errorf("killed before detach began: listed are %v", left)
					}
				}
				r.detach("box")
				if after := inside.state(); after != before {
					t.Errorf("killed at step %s of detach: the namespace is not as before:%s", step, unlike(before, after))
				}
				r.stop()
			}
		})
	}
}

func TestAFailureAtAnyStepLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, model := range models {
		t.Run(model, func(t *testing.T) {
			t.Parallel()
			attachSteps, detachSteps := stepsOf(t, model)
			var mu sync.Mutex
			failing := ""
			broken := errors.New("netlink: no buffer space available")
			r := newRig(t, func(d *Deps) {
				d.Log = nil // what is logged is the failures made here
				d.Failpoint = func(step string) error {
					mu.Lock()
					defer mu.Unlock()
					if step == failing {
						return broken
					}
					return nil
				}
			}).start()
			fail := func(step string) {
				mu.Lock()
				defer mu.Unlock()
				failing = step
			}
			inside, before := faultGround(t)
			request := &netv1.AttachRequest{Sandbox: "box", Namespace: &netv1.Namespace{Pid: inside.pid()}, Policy: &netv1.Policy{Model: model}}
			for _, step := range attachSteps {
				fail(step)
				if _, err := ask[netv1.AttachReply](r, "attach", request); err == nil {
					t.Errorf("step %s of attach failed, and the caller does not know", step)
				}
				if after := inside.state(); after != before {
					t.Errorf("failed at step %s of attach: the namespace is not as before:%s", step, unlike(before, after))
				}
			}
			for _, step := range detachSteps {
				fail("")
				call[netv1.AttachReply](r, "attach", request)
				fail(step)
				_, err := ask[netv1.DetachReply](r, "detach", &netv1.DetachRequest{Sandbox: "box"})
				if err == nil && step != "detaching-record" { // the record may be behind: that is no failure
					t.Errorf("step %s of detach failed, and the caller does not know", step)
				}
				fail("")
				r.detach("box")
				if after := inside.state(); after != before {
					t.Errorf("failed at step %s of detach: the namespace is not as before:%s", step, unlike(before, after))
				}
			}
			if records := r.records(); len(records) != 0 {
				t.Errorf("records are left: %v", records)
			}
		})
	}
}

// records are those in the bucket.
func (r *rig) records() []string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	b, err := bus.OpenBucket[*netv1.Attachment](ctx, r.bus.Conn(), bus.BucketNetworks)
	if err != nil {
		r.t.Fatal(err)
	}
	keys, err := b.Keys(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	return keys
}

func TestANetworkStaysUpWhileTheServiceIsDead(t *testing.T) {
	t.Parallel()
	for _, model := range models {
		for _, lost := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s record lost %t", model, lost), func(t *testing.T) {
				t.Parallel()
				r := newRig(t)
				inside, outside := newSpace(t), newSpace(t)
				inside.veth("eth0", outside, "out0")
				inside.run("ip link set eth0 address 02:00:00:00:00:01 up; ip addr add 10.9.0.2/24 dev eth0")
				inside.settle("eth0")
				before := inside.state()
				policy := &netv1.Policy{Model: model, AllowedAddresses: []string{"10.8.0.0/24"}, AllowedMacs: []string{"02:00:00:00:00:77"}}
				service, ended := r.alone("")
				a := call[netv1.AttachReply](r, "attach", &netv1.AttachRequest{
					Sandbox: "box.1", Namespace: &netv1.Namespace{Pid: inside.pid()}, Policy: policy,
				}).Attachment
				link := a.Network.Links[0]
				tap := r.open("box.1", link.Id)[0]
				far := outside.packets("out0")
				exchange := func(when string) {
					t.Helper()
					pass(t, far, tap, frame(link.Mac, "02:00:00:00:00:99", "10.9.0.1", "10.9.0.2", "to the guest "+when))
					pass(t, tap, far, withHeader(frame("02:00:00:00:00:99", link.Mac, "10.9.0.2", "10.9.0.1", "from the guest "+when)))
				}
				exchange("while it runs")
				_ = service.Process.Kill()
				<-ended
				exchange("while it is dead")
				inside.run("ip addr add 10.9.0.3/24 dev eth0") // what changes meanwhile is seen later
				if lost {
					r.loseRecord("box.1")
				}
				r.start()
				exchange("when it is back")
				again := call[netv1.InspectReply](r, "inspect", &netv1.InspectRequest{Sandbox: "box.1"}).Attachment
				if got := again.Network.Links; len(got) != 1 || got[0].Id != link.Id || got[0].Mac != link.Mac || !again.Attached.AsTime().Equal(a.Attached.AsTime()) || !hasAddress(got[0], "10.9.0.3/24") {
					t.Errorf("taken over: %v", again)
				}
				if again.Revision <= a.Revision { // who was told the first would not take the second for news
					t.Errorf("taken over with revision %d after %d", again.Revision, a.Revision)
				}
				// The worker says again what its VM may send, as the record may be lost.
				call[netv1.AttachReply](r, "attach", &netv1.AttachRequest{Sandbox: "box.1", Namespace: &netv1.Namespace{Pid: inside.pid()}, Policy: policy})
				pass(t, tap, far, withHeader(frame("02:00:00:00:00:99", "02:00:00:00:00:77", "10.8.0.5", "10.9.0.1", "from an allowed one")))
				inside.run("ip addr del 10.9.0.3/24 dev eth0")
				r.detach("box.1")
				if after := inside.state(); after != before {
					t.Errorf("after a detach by the next service: the namespace is not as before:%s", unlike(before, after))
				}
			})
		}
	}
}

// What a VM may send is the asker's to say, also of what is attached.
func TestARepeatedAttachSaysWhatTheVMMaySend(t *testing.T) {
	t.Parallel()
	for _, model := range models {
		t.Run(model, func(t *testing.T) {
			t.Parallel()
			r := newRig(t).start()
			inside, outside := newSpace(t), newSpace(t)
			inside.veth("eth0", outside, "out0")
			inside.run("ip link set eth0 address 02:00:00:00:00:01 up; ip addr add 10.9.0.2/24 dev eth0")
			inside.settle("eth0")
			policy := &netv1.Policy{Model: model}
			attach := func() *netv1.Attachment {
				return call[netv1.AttachReply](r, "attach", &netv1.AttachRequest{Sandbox: "box", Namespace: &netv1.Namespace{Pid: inside.pid()}, Policy: policy}).Attachment
			}
			a := attach()
			tap, far := r.open("box", a.Network.Links[0].Id)[0], outside.packets("out0")
			foreign := withHeader(frame("02:00:00:00:00:99", "02:00:00:00:00:66", "10.7.0.5", "10.9.0.1", "from a foreign one"))
			own := func(text string) []byte {
				return withHeader(frame("02:00:00:00:00:99", a.Network.Links[0].Mac, "10.9.0.2", "10.9.0.1", text))
			}
			policy.AllowSpoofing = true
			attach()
			pass(t, tap, far, foreign)
			policy.AllowSpoofing = false
			if a := attach(); a.Policy.AllowSpoofing {
				t.Errorf("in force is %v", a.Policy)
			}
			pass(t, tap, far, own("a mark that comes after all before")) // what was let through has come
			if _, err := tap.Write(foreign); err != nil {
				t.Fatal(err)
			}
			passAlone(t, tap, far, own("from its own address"), "from a foreign one")
		})
	}
}

// passAlone is pass, and fails for a frame that ends with a text it should not.
func passAlone(t *testing.T, from, to *os.File, frame []byte, unwanted string) {
	t.Helper()
	text := frame[len(frame)-12:]
	if _, err := from.Write(frame); err != nil {
		t.Fatal(err)
	}
	_ = to.SetReadDeadline(time.Now().Add(deadline))
	for buf := make([]byte, 70000); ; {
		n, err := to.Read(buf)
		if err != nil {
			t.Fatalf("a frame that ends with %q does not come: %v", text, err)
		}
		if bytes.HasSuffix(buf[:n], []byte(unwanted)) {
			t.Fatalf("a frame that ends with %q came", unwanted)
		}
		if bytes.HasSuffix(buf[:n], text) {
			return
		}
	}
}

// A VM whose network is taken back may run still, and its tap is joined until the end.
func TestNothingPassesUncheckedWhileANetworkIsTakenBack(t *testing.T) {
	t.Parallel()
	for _, model := range models {
		t.Run(model, func(t *testing.T) {
			t.Parallel()
			var tap, near *os.File
			var mac string
			r := newRig(t, func(d *Deps) {
				d.Failpoint = func(step string) error {
					if step == "take-tap" || step == "take-bridge" || step == "take-multicast" { // the guard is away
						_, _ = tap.Write(withHeader(frame("02:00:00:00:00:99", mac, "10.66.0.6", "10.9.0.1", "forged")))
					}
					return nil
				}
			}).start()
			inside, outside := newSpace(t), newSpace(t)
			inside.veth("eth0", outside, "out0")
			inside.run("ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0")
			inside.settle("eth0")
			a := call[netv1.AttachReply](r, "attach", &netv1.AttachRequest{Sandbox: "box", Namespace: &netv1.Namespace{Pid: inside.pid()}, Policy: &netv1.Policy{Model: model}}).Attachment
			mac = a.Network.Links[0].Mac
			tap = r.open("box", a.Network.Links[0].Id)[0]
			far := outside.packets("out0")
			near = inside.packets("eth0")
			pass(t, tap, far, withHeader(frame("02:00:00:00:00:99", mac, "10.9.0.2", "10.9.0.1", "from the guest as long as it may")))
			r.detach("box")
			passAlone(t, near, far, frame("02:00:00:00:00:99", mac, "10.9.0.2", "10.9.0.1", "after the detach"), "forged")
		})
	}
}

// Who asked may be gone, and an open namespace keeps alive what is in it.
func TestWhatCannotBeTakenBackIsTriedAgain(t *testing.T) {
	t.Parallel()
	var failures atomic.Int32
	r := newRig(t, func(d *Deps) {
		d.Log = nil // what is logged is the failure made here
		d.Failpoint = func(step string) error {
			if step == "take-tap" && failures.Add(1) <= 2 {
				return errors.New("netlink: no buffer space available")
			}
			return nil
		}
	}).start()
	inside, before := faultGround(t)
	r.attach("box", inside)
	if _, err := ask[netv1.DetachReply](r, "detach", &netv1.DetachRequest{Sandbox: "box"}); err == nil {
		t.Fatal("a tap could not be removed, and the caller does not know")
	}
	for end := time.Now().Add(deadline); len(r.records()) != 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it is not tried again")
		}
	}
	if after := inside.state(); after != before {
		t.Errorf("the namespace is not as before:%s", unlike(before, after))
	}
}

// Records are where people and the next service look, also after the bus has lost them.
func TestRecordsComeBackWithTheBus(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(d *Deps) { d.Log = nil }).start()
	inside, _ := faultGround(t)
	r.attach("box", inside)
	r.loseRecord("box")
	if err := r.conn.NATS().ForceReconnect(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(deadline); len(r.records()) == 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the bus is back, and the record is not")
		}
	}
}

func (r *rig) loseRecord(sandbox string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	b, err := bus.OpenBucket[*netv1.Attachment](ctx, r.bus.Conn(), bus.BucketNetworks)
	if err == nil {
		err = b.Delete(ctx, bus.Token(sandbox))
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func hasAddress(l *netv1.Link, prefix string) bool {
	return slices.ContainsFunc(l.Addresses, func(a *netv1.Address) bool { return a.Prefix == prefix })
}

// unitCapabilities are those that the systemd unit leaves, as setpriv wants them.
func unitCapabilities(t *testing.T) string {
	t.Helper()
	unit, err := os.ReadFile("../../deploy/systemd/bulkhead-network.service")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(unit), "\nCapabilityBoundingSet=")
	line, _, _ := strings.Cut(rest, "\n")
	names := strings.Fields(line)
	if !found || len(names) != 2 {
		t.Fatalf("the unit leaves the capabilities %q", line)
	}
	var set strings.Builder
	for _, name := range names {
		set.WriteString(",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_")))
	}
	return set.String()
}

func TestAVMTakesTheFilesThatTheLimitCountsOn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	service, _ := r.alone("")
	open := func() int { // the least of some looks: what is open for a moment only makes it more
		least := math.MaxInt
		for range 10 {
			files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", service.Process.Pid))
			if err != nil {
				t.Fatal(err)
			}
			least = min(least, len(files))
			time.Sleep(5 * time.Millisecond)
		}
		return least
	}
	attach := func(sandbox string) {
		inside, _ := faultGround(t)
		r.attach(sandbox, inside)
	}
	attach("first") // with what is opened once
	before := open()
	const more = 5
	for i := range more {
		attach(fmt.Sprint("further-", i))
	}
	if took := open() - before; took != more*FilesOfVM {
		t.Errorf("%d VMs take %d open files, and the limit counts on %d of each", more, took, FilesOfVM)
	}
}

func TestTheServiceAloneNeedsTwoCapabilities(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.alone("", "setpriv", "--bounding-set=-all"+unitCapabilities(t), "--inh-caps=-all", "--no-new-privs")
	for _, model := range []string{"tc", "bridge"} {
		inside, before := faultGround(t)
		a := call[netv1.AttachReply](r, "attach", &netv1.AttachRequest{
			Sandbox: "box-" + model, Namespace: &netv1.Namespace{Pid: inside.pid()}, Policy: &netv1.Policy{Model: model},
		}).Attachment
		r.open(a.Sandbox, a.Network.Links[0].Id)
		r.detach(a.Sandbox)
		if after := inside.state(); after != before {
			t.Errorf("model %s: the namespace is not as before:%s", model, unlike(before, after))
		}
	}
	_, err := ask[netv1.AttachReply](r, "attach", &netv1.AttachRequest{Sandbox: "host", Namespace: &netv1.Namespace{Pid: 1}})
	if bus.ReasonOf(err) != bus.FailedPrecondition {
		t.Errorf("attached to the host's network: %v", err)
	}
}
