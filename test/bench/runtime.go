// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const runcPrefix = "runc_"

// prefixes are those of the runtimes, bulkhead's first.
var prefixes = []string{"", runcPrefix, runscPrefix}

// commandTime bounds one runtime command; a create boots a VM.
const commandTime = 2 * time.Minute

// runtime is an OCI command line and how engines call it.
type runtime struct {
	prefix string // of the names of its numbers
	binary string
	global []string
	names  []string      // what can be measured of it; nil is everything
	hint   func() string // what a failure should carry besides, may be nil
}

// has says whether a number of this name is taken of the runtime.
func (rt *runtime) has(name string) bool { return rt.names == nil || slices.Contains(rt.names, name) }

// stdio are the standard streams of a container process; nil is /dev/null.
type stdio struct {
	in, out, err *os.File
	console      string // --console-socket
}

// call runs one command to its end. The streams are those of the container when
// the command is one that makes a process, so what it complains of is read from --log.
func (rt *runtime) call(ctx context.Context, s stdio, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	log, err := os.CreateTemp("", "bh-bench-log-")
	if err != nil {
		return err
	}
	defer os.Remove(log.Name())
	defer log.Close()
	global := append([]string{"--log", log.Name(), "--log-format", "json"}, rt.global...)
	cmd := exec.CommandContext(ctx, rt.binary, append(global, args...)...)
	// Files only: os/exec then waits for the command and not for its streams.
	if s.in != nil {
		cmd.Stdin = s.in
	}
	if s.out != nil {
		cmd.Stdout = s.out
	}
	if s.err != nil {
		cmd.Stderr = s.err
	}
	if err := cmd.Run(); err != nil {
		said, _ := os.ReadFile(log.Name())
		return rt.explain(fmt.Errorf("%s %s: %w: %s", filepath.Base(rt.binary), strings.Join(args, " "), err, bytes.TrimSpace(said)))
	}
	return nil
}

func (rt *runtime) explain(err error) error {
	if rt.hint == nil {
		return err
	}
	return fmt.Errorf("%w\nlast lines of the daemon's log:\n%s", err, rt.hint())
}

// container is a created container and its host process, a child of ours.
type container struct {
	rt  *runtime
	id  string
	pid int
}

// create makes a container as an engine does.
func (rt *runtime) create(ctx context.Context, id, bundle string, s stdio) (*container, error) {
	c := &container{rt: rt, id: id}
	pidFile := filepath.Join(os.TempDir(), "bh-bench-"+strconv.Itoa(os.Getpid())+"-"+id+".pid")
	defer os.Remove(pidFile)
	args := []string{"create", "--bundle", bundle, "--pid-file", pidFile}
	if s.console != "" {
		args = append(args, "--console-socket", s.console)
	}
	err := rt.call(ctx, s, append(args, id)...)
	if err == nil {
		c.pid, err = readPid(pidFile)
	}
	if err != nil {
		return nil, errors.Join(err, c.remove(ctx))
	}
	return c, nil
}

// launch is create and start.
func (rt *runtime) launch(ctx context.Context, id, bundle string, s stdio) (*container, error) {
	c, err := rt.create(ctx, id, bundle, s)
	if err != nil {
		return nil, err
	}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(err, c.remove(ctx))
	}
	return c, nil
}

func (c *container) start(ctx context.Context) error { return c.rt.call(ctx, stdio{}, "start", c.id) }

// wait reaps the container's process, which must succeed.
func (c *container) wait(ctx context.Context) error {
	code, err := reap(ctx, c.pid)
	if err == nil && code != 0 {
		err = fmt.Errorf("it ended with %d", code)
	}
	if err != nil {
		return c.rt.explain(fmt.Errorf("container %s: %w", c.id, err))
	}
	c.pid = 0
	return nil
}

func (c *container) delete(ctx context.Context) error { return c.rt.call(ctx, stdio{}, "delete", c.id) }

// exec runs bench's process file in the container and waits for its end.
func (c *container) exec(ctx context.Context, process string) error {
	pidFile := filepath.Join(os.TempDir(), "bh-bench-"+strconv.Itoa(os.Getpid())+"-exec.pid")
	defer os.Remove(pidFile)
	if err := c.rt.call(ctx, stdio{}, "exec", "--detach", "--pid-file", pidFile, "--process", process, c.id); err != nil {
		return err
	}
	pid, err := readPid(pidFile)
	if err != nil {
		return err
	}
	code, err := reap(ctx, pid)
	if err == nil && code != 0 {
		err = fmt.Errorf("it ended with %d", code)
	}
	if err != nil {
		return c.rt.explain(fmt.Errorf("exec in %s: %w", c.id, err))
	}
	return nil
}

// removeTime bounds taking a container away, also when the benchmark is interrupted.
const removeTime = 40 * time.Second

// remove kills and deletes the container in whatever state it is. It works
// after ctx has ended.
func (c *container) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTime)
	defer cancel()
	err := c.rt.call(ctx, stdio{}, "delete", "--force", c.id)
	if c.pid != 0 {
		if err != nil { // nobody else will
			_ = unix.Kill(c.pid, unix.SIGKILL)
		}
		_, reapErr := reap(ctx, c.pid)
		err = errors.Join(err, reapErr)
		c.pid = 0
	}
	if err != nil {
		c.removeCgroups()
	}
	return err
}

// removeCgroups takes away the cgroups of a container whose runtime could not be made to. They
// have the container's name, as the bundles name none, and can be removed when its processes are gone.
func (c *container) removeCgroups() {
	for _, pattern := range []string{"/sys/fs/cgroup/*/", "/sys/fs/cgroup/"} {
		dirs, _ := filepath.Glob(pattern + c.id)
		for _, dir := range dirs {
			_ = unix.Rmdir(dir)
		}
	}
}

func readPid(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read the pid-file: %w", err)
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("the pid-file holds %q instead of a pid", text)
	}
	return pid, nil
}
