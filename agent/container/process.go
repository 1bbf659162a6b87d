// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// process is one process of a container. Its exit is collected by one goroutine
// of the manager; done is closed when everything about it is settled.
type process struct {
	execID   string
	channel  uint32
	stream   Stream
	oomStart uint64 // the cgroup's OOM count when it started
	done     chan struct{}

	// Guarded by the container's mu; lp and pid are set once.
	lp     *libcontainer.Process // nil until it runs
	pid    int
	doomed bool // killed before it ran
	exited bool
	code   int
	oom    bool
}

func newProcess(execID string, channel uint32) *process {
	return &process{execID: execID, channel: channel, done: make(chan struct{})}
}

func (p *process) settled() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// ProcessInfo describes a process.
type ProcessInfo struct {
	ExecID    string // empty: init
	Channel   uint32
	Pid       int // in the guest
	Exited    bool
	ExitCode  int
	OOMKilled bool
}

func (p *process) info() ProcessInfo {
	return ProcessInfo{ExecID: p.execID, Channel: p.channel, Pid: p.pid, Exited: p.exited, ExitCode: p.code, OOMKilled: p.oom}
}

// libcontainerProcess translates the process of the specification.
func libcontainerProcess(p *specs.Process) (*libcontainer.Process, error) {
	lp := &libcontainer.Process{
		Args:            p.Args,
		Env:             p.Env,
		UID:             int(p.User.UID),
		GID:             int(p.User.GID),
		Cwd:             p.Cwd,
		NoNewPrivileges: &p.NoNewPrivileges,
		Label:           p.SelinuxLabel,
		Scheduler:       p.Scheduler,
		IOPriority:      p.IOPriority,
		LogLevel:        "3", // logrus' warnings
	}
	for _, gid := range p.User.AdditionalGids {
		lp.AdditionalGroups = append(lp.AdditionalGroups, int(gid))
	}
	if p.ConsoleSize != nil {
		lp.ConsoleWidth, lp.ConsoleHeight = uint16(p.ConsoleSize.Width), uint16(p.ConsoleSize.Height)
	}
	if c := p.Capabilities; c != nil {
		lp.Capabilities = &configs.Capabilities{
			Bounding: c.Bounding, Effective: c.Effective, Inheritable: c.Inheritable, Permitted: c.Permitted, Ambient: c.Ambient,
		}
	}
	for _, r := range p.Rlimits {
		resource, ok := rlimits[r.Type]
		if !ok {
			return nil, fmt.Errorf("%w: process.rlimits %q is unknown", ErrInvalid, r.Type)
		}
		lp.Rlimits = append(lp.Rlimits, configs.Rlimit{Type: resource, Hard: r.Hard, Soft: r.Soft})
	}
	var err error
	if lp.CPUAffinity, err = configs.ConvertCPUAffinity(p.ExecCPUAffinity); err != nil {
		return nil, fmt.Errorf("%w: process.execCPUAffinity: %w", ErrInvalid, err)
	}
	return lp, checkAffinity(lp.CPUAffinity)
}

// rlimits are the names of getrlimit(2).
var rlimits = map[string]int{
	"RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_DATA": unix.RLIMIT_DATA,
	"RLIMIT_STACK": unix.RLIMIT_STACK, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
	"RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
}

// launch starts a process with its streams and makes the manager wait for it.
// Nothing is left when it fails. running is called under mu when the process runs,
// before its exit can be collected.
func (c *Container) launch(ctx context.Context, lc *libcontainer.Container, p *process, spec *specs.Process, running func()) error {
	lp, err := libcontainerProcess(spec)
	if err != nil {
		return err
	}
	lp.Init = p.execID == ""
	if !lp.Init {
		var done func()
		if lc, done, err = c.withOwn(lc, spec); err != nil {
			return err
		}
		defer done()
	}
	streams, err := openEnds(lp, spec)
	if err != nil {
		return err
	}
	if err := streams.giveTo(lc.Config(), spec.User); err != nil {
		streams.close()
		return err
	}
	if err := c.enter(ctx, p); err != nil {
		streams.close()
		return err
	}
	defer c.leave()
	p.oomStart = c.cgroup.oomKills()
	if err := c.m.forks.begin(ctx); err != nil {
		streams.close()
		return err
	}
	start := c.m.cfg.Reaper.Begin()
	err = lc.Start(lp)
	c.m.forks.end()
	if err != nil {
		start.Finish(0)
		streams.close()
		return tidyStartError(err)
	}
	pid, err := lp.Pid()
	if err == nil {
		p.stream, err = c.connect(p.channel, lp, streams)
	}
	if err != nil {
		streams.close()
		_ = lp.Signal(unix.SIGKILL)
		_, _ = lp.Wait()
		start.Finish(0)
		return fmt.Errorf("connecting the standard streams: %w", err)
	}
	start.Finish(pid)
	c.mu.Lock()
	p.lp, p.pid = lp, pid
	doomed := p.doomed
	running()
	c.mu.Unlock()
	c.m.waiters.Go(func() { c.collect(p) })
	if doomed {
		_ = signalProcess(lp, unix.SIGKILL) // it may have ended by itself
	}
	return nil
}

func (c *Container) connect(channel uint32, lp *libcontainer.Process, streams *ends) (Stream, error) {
	ours, err := streams.started()
	if err != nil {
		return nil, err
	}
	ours.Signal = func(n int) error { return signalProcess(lp, unix.Signal(n)) }
	return c.m.cfg.Streams.Open(channel, ours)
}

// tidyStartError leaves the sentence that engines look for, which libcontainer
// repeats when the log of its child says the same.
func tidyStartError(err error) error {
	text := err.Error()
	if head, tail, found := strings.Cut(text, "; runc init error(s): "); found && strings.Contains(head, tail) {
		return errors.New(head)
	}
	return err
}

// collect waits for a process to end and tells everyone.
func (c *Container) collect(p *process) {
	state, _ := p.lp.Wait()
	c.m.cfg.Reaper.Release(p.pid)
	code := exitCode(state)
	// 137 without a count is somebody's SIGKILL; a count without 137 was another process.
	killed := c.cgroup.oomKills() > p.oomStart
	oom := killed && (p.execID == "" || code == 128+int(unix.SIGKILL))
	if p.execID == "" {
		// The PID namespace died with its init; this is for what left it.
		if err := c.cgroup.kill(); err != nil {
			c.log.Warn("cannot kill what the init left", "error", err)
		}
		c.flush()
		c.tellKills()
	}
	c.mu.Lock()
	p.exited, p.code, p.oom = true, code, oom
	if p.execID == "" {
		c.status = Stopped
		c.frozen = false
		c.notifyLocked()
	} else {
		c.dropOldExecs()
	}
	c.mu.Unlock()
	p.stream.Exited(code, oom)
	c.m.cfg.Exited(Exited{Container: c.key, ExecID: p.execID, Code: code, OOMKilled: oom})
	close(p.done)
}

// exitCode is the shell's convention: 128+n for signal n.
func exitCode(state *os.ProcessState) int {
	if state == nil {
		return 255
	}
	status, ok := state.Sys().(syscall.WaitStatus)
	switch {
	case !ok:
		return 255
	case status.Signaled():
		return 128 + int(status.Signal())
	default:
		return status.ExitStatus()
	}
}

func signalProcess(lp *libcontainer.Process, sig unix.Signal) error {
	err := lp.Signal(sig)
	if errors.Is(err, os.ErrProcessDone) || errors.Is(err, unix.ESRCH) {
		return ErrNotRunning
	}
	return err
}
