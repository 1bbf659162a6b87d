// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/test/e2e/host"
)

// poolOf is what the host tells of its templates and its pool.
func poolOf(ctx context.Context, conn *bus.Conn) (*vmv1.PoolReply, error) {
	return bus.Call[vmv1.PoolReply](ctx, conn, conn.Subject("vm", "pool"), &vmv1.PoolRequest{})
}

// awaitPool waits until the pool is full and its template is not the one of that key.
func awaitPool(t *testing.T, conn *bus.Conn, not string) *vmv1.PoolReply {
	t.Helper()
	var pool *vmv1.PoolReply
	must(t, launchTime, func() (err error) {
		if pool, err = poolOf(within(t, commandTime), conn); err != nil {
			return err
		}
		if pool.GetReady() == 0 || pool.GetReady() != pool.GetTarget() || len(pool.GetTemplates()) != 1 ||
			pool.Templates[0].GetState() != "ready" || pool.Templates[0].GetKey() == not || pool.Sandboxes[0].GetTemplate() != pool.Templates[0].GetKey() {
			return fmt.Errorf("the pool is %v", pool)
		}
		return nil
	})
	return pool
}

// TestADaemonKilledWhileItMakesATemplateLeavesNothing: no process, no directory, no cgroup and none of the template's
// memory after the next start, which does not use templates, whatever was there of the first when it was killed.
func TestADaemonKilledWhileItMakesATemplateLeavesNothing(t *testing.T) {
	for i, c := range []struct {
		what    string
		reached func(h *host.Host, pids []int) bool
	}{
		{"as it begins", func(*host.Host, []int) bool { return true }},
		{"when there is a process", func(_ *host.Host, pids []int) bool { return len(pids) > 0 }},
		{"when its guest boots", func(_ *host.Host, pids []int) bool { return booting(pids) }},
		{"when there is a VM for the pool", func(h *host.Host, _ []int) bool { return pooled(h) }},
		{"when what forks VMs stands still", func(h *host.Host, _ []int) bool { return pooled(h) && stopped(h) }},
	} {
		t.Run(c.what, func(t *testing.T) {
			id := fmt.Sprint("killed-", i)
			h := newHost(t, id, host.Settings{})
			logOnFailure(t, h.Log())
			if err := h.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			var dirs []string
			var pids []int
			must(t, launchTime, func() error {
				if dirs, pids = h.Spare(); len(dirs) == 0 || !c.reached(h, pids) {
					return fmt.Errorf("spare are %v, %v", dirs, pids)
				}
				return nil
			})
			killDaemon(t, h)
			_, later := h.Spare() // a process may have come between the look and the kill
			h = newHost(t, id, host.Settings{Boot: true})
			if err := h.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			stopAtEnd(t, h)
			must(t, cleanTime, func() error { return nothingOfTemplates(h, append(pids, later...)) })
		})
	}
}

func pooled(h *host.Host) bool {
	dirs, _ := h.Spare()
	for _, dir := range dirs {
		if !strings.HasPrefix(filepath.Base(dir), "template-") {
			return true
		}
	}
	return false
}

// stopped stops the process that forks VMs, if there is one: it hears of nothing that happens.
func stopped(h *host.Host) bool {
	_, pids := h.Spare()
	for _, pid := range pids {
		argv, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
		if err == nil && strings.Contains(string(argv), "bulkhead-template-") {
			return unix.Kill(pid, unix.SIGSTOP) == nil
		}
	}
	return false
}

// booting tells whether one of the processes has had a second of processor time, which a guest at work takes.
func booting(pids []int) bool {
	for _, pid := range pids {
		text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			continue
		}
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:])) // from the third on
		if ticks, err := strconv.Atoi(fields[11]); err == nil && ticks >= 100 {
			return true
		}
	}
	return false
}

func nothingOfTemplates(h *host.Host, pids []int) error {
	dirs, _ := h.Spare()
	errs := []error{gone(filepath.Join(h.RunDir, "vm", "pool-cgroup.json")), gone(filepath.Join(h.RunDir, "vm", "zygote-cgroup.json"))}
	for _, dir := range dirs {
		errs = append(errs, fmt.Errorf("%s is left", dir))
	}
	for _, pid := range pids {
		errs = append(errs, gone("/proc/"+strconv.Itoa(pid)))
	}
	cgroups, err := ground.Cgroups()
	errs = append(errs, err)
	for _, cgroup := range cgroups {
		if (strings.Contains(cgroup, "pool-") || strings.Contains(cgroup, "zygote-")) && strings.Contains(cgroup, strings.ReplaceAll(strings.Trim(h.RunDir, "/"), "/", "-")) {
			errs = append(errs, fmt.Errorf("cgroup %s is left", cgroup))
		}
	}
	// Memory without a name lives as long as somebody has it open or mapped.
	open, err := filepath.Glob("/proc/" + strconv.Itoa(h.Daemon().PID()) + "/fd/*")
	errs = append(errs, err)
	for _, fd := range open {
		if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, "/memfd:guest-") {
			errs = append(errs, fmt.Errorf("the daemon holds %s", to))
		}
	}
	return errors.Join(errs...)
}

// TestATemplateFollowsTheFilesItWasMadeOf: an image that is replaced beside a daemon that does nothing. The template and the
// VM that stood ready go, also without a create, and what comes next is of the new parts.
func TestATemplateFollowsTheFilesItWasMadeOf(t *testing.T) {
	needsProduct(t)
	dir := t.TempDir()
	image, err := os.ReadFile(filepath.Join(ground.Guest, "image.ext4"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "image.ext4")
	replace := func() {
		t.Helper()
		if err := errors.Join(os.WriteFile(file+".new", image, 0o600), os.Rename(file+".new", file)); err != nil {
			t.Fatal(err)
		}
	}
	replace()
	h := newHost(t, "parts", host.Settings{Image: file})
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	stopAtEnd(t, h)
	conn := dial(t, h)
	o := newOCI(t, h)
	before := awaitPool(t, conn, "")
	image[len(image)-1]++ // the last block of the file system is nobody's
	replace()
	// At once, so that the daemon need not have noticed: it asks for itself.
	id := newID("between")
	m := o.launch(id, newSpec("true"))
	exits(t, m, 0)
	if s := o.sandbox(conn, id); s.GetTemplate() == before.Templates[0].GetKey() {
		t.Errorf("the container's VM continues from a template of the former image: %v", s)
	}
	o.do("delete", id)
	after := awaitPool(t, conn, before.Templates[0].GetKey())
	must(t, cleanTime, func() error { return gone("/proc/" + strconv.Itoa(int(before.Sandboxes[0].GetPid()))) })
	image[len(image)-1]++ // and unmet
	replace()
	last := awaitPool(t, conn, after.Templates[0].GetKey())
	must(t, cleanTime, func() error { return gone("/proc/" + strconv.Itoa(int(after.Sandboxes[0].GetPid()))) })
	id = newID("after")
	exits(t, o.launch(id, newSpec("true")), 0)
	if got := o.sandbox(conn, id); got.GetTemplate() != last.Templates[0].GetKey() {
		t.Errorf("the container's VM is %v", got)
	}
	o.do("delete", id)
}

// TestAPoolVMThatStandsStillIsReplaced: a create that takes a VM which does not answer any more goes on with another one.
func TestAPoolVMThatStandsStillIsReplaced(t *testing.T) {
	h := newHost(t, "still", host.Settings{})
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	stopAtEnd(t, h)
	conn := dial(t, h)
	o := newOCI(t, h)
	still := awaitPool(t, conn, "").Sandboxes[0]
	if err := unix.Kill(int(still.GetPid()), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	id := newID("still")
	exits(t, o.launch(id, newSpec("sh", "-c", "exit 7")), 7)
	vm := o.sandbox(conn, id)
	if vm.GetId() != still.GetId() || vm.GetPid() == still.GetPid() || vm.GetOrigin() != "template" {
		t.Errorf("the container's VM is %v, and the one that stood still was %v", vm, still)
	}
	sentence(t, vm.GetOriginReason(), "the pool VM before it failed")
	must(t, cleanTime, func() error { return gone("/proc/" + strconv.Itoa(int(still.GetPid()))) })
	o.do("delete", id)
}
