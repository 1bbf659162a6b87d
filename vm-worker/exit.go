// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	vmv1 "bulkhead/proto/vm/v1"
)

// exitVMGone is the exit code of a process whose VM is dead: 128 + SIGKILL, as
// for a process that was killed.
const exitVMGone = 137

// processExited hears from the guest, by the stdio channel, how a process
// ended. The process counts as ended when its relay has, which is told only
// after this: engines learn of an OOM kill before they learn of the end.
func (s *sandbox) processExited(channel uint32, code int, oom bool) {
	exit := &vmv1.Exit{Code: int32(code), OomKilled: oom, Time: timestamppb.Now()}
	if oom {
		exit.Reason = "killed by the guest's kernel for want of memory"
	}
	for _, c := range s.memberList() {
		if c.noteExit(channel, exit) {
			if oom {
				c.noteOOM(0, time.Now()) // the agent's own word may come too late
				c.tellOOM()
			}
			return
		}
	}
}

// noteExit keeps the exit of one of the container's processes, if the channel is
// its own. That of init is written down: the relay may end while no worker is
// there to see it, and then nobody else knows.
func (c *container) noteExit(channel uint32, exit *vmv1.Exit) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, x := range c.execs {
		if x.rec.Channel == channel {
			x.exit = exit
			return false // an exec's OOM kill is not the container's
		}
	}
	if c.rec.Channel != channel || c.exit != nil {
		return false
	}
	c.exit, c.rec.Exit = exit, exit
	if !c.removing {
		if err := c.w.store.writeContainer(c.rec); err != nil {
			c.w.log.Warn("exit of container not written down", "container", c.rec.Ref.Id, "error", err)
		}
	}
	return true
}

// oomPace is the least time between two events of kills in one container: a guest
// may kill, or say so, as often as it likes.
const oomPace = time.Second

// noteOOM tells that the guest's kernel has killed processes of the container,
// so many so far; 0 is one at least.
func (c *container) noteOOM(kills uint64, now time.Time) {
	c.mu.Lock()
	kills = max(kills, 1)
	news := kills > c.oomKills && now.Sub(c.oomTold) >= oomPace
	if news {
		c.oomKills, c.oomTold = kills, now
	}
	c.mu.Unlock()
	if news {
		c.w.event(context.Background(), "container", c.rec.Ref.Id, "oom", map[string]string{"key": c.key})
	}
}

// oomTime bounds how long the end of a container waits for its OOM report.
const oomTime = 3 * time.Second

// tellOOM makes an OOM kill in the guest visible where engines look for one: in
// the container's host cgroup, and, for Podman and CRI-O, as the file "oom" in
// the bundle.
func (c *container) tellOOM() {
	// The bundle's directory is root's own; a link planted in it is not followed.
	f, err := os.OpenFile(filepath.Join(c.rec.Bundle, "oom"), os.O_CREATE|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		c.w.log.Debug("no oom file in the bundle", "container", c.rec.Ref.Id, "error", err)
	} else {
		f.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), oomTime)
	defer cancel()
	if cgroup := c.hostCgroup(); cgroup != nil {
		if err := cgroup.SignalOOM(ctx); err != nil {
			c.w.log.Warn("the host's cgroup does not show the guest's OOM kill", "container", c.rec.Ref.Id, "error", err)
		}
	}
}

// exitLocked is the exit of a container whose relay has ended; vmGone is why its
// VM has, if it has. The caller holds c.mu.
func (c *container) exitLocked(vmGone string) *vmv1.Exit {
	if c.exit == nil {
		c.exit = &vmv1.Exit{Code: exitVMGone, Time: timestamppb.Now(), Reason: "its relay on the host was killed"}
		if vmGone != "" {
			c.exit.Reason = vmGone
		}
	}
	return c.exit
}
