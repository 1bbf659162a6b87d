// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// StartJanitor starts a process that removes everything of the ground when the
// tests end, in whatever way: a suite that is killed leaves no daemons.
// The function it gives lets it work and waits for it.
func (g *Ground) StartJanitor() (func() error, error) {
	cmd := helper("janitor", g.Token)
	life, err := cmd.StdinPipe() // closed by the kernel when we die
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the janitor: %w", err)
	}
	return func() error {
		life.Close()
		return cmd.Wait()
	}, nil
}

// janitorMain is the janitor's side.
func janitorMain(token string) error {
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	g := &Ground{Token: token, Dir: filepath.Join("/run", token), Data: filepath.Join("/var/tmp", token)}
	return errors.Join(g.Clean(), g.Remove())
}

// Clean removes by force what Left would list.
func (g *Ground) Clean() error {
	const rounds, pause = 100, 50 * time.Millisecond // killed processes need moments to go
	for range rounds {
		processes, err := g.Processes()
		if err != nil {
			return err
		}
		if len(processes) == 0 {
			break
		}
		for _, p := range processes {
			_ = unix.Kill(p.PID, unix.SIGKILL) // gone by itself is as good
		}
		time.Sleep(pause)
	}
	mounts, err := g.mounts()
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range mounts {
		errs = append(errs, Unmount(path))
	}
	cgroups, err := g.Cgroups()
	errs = append(errs, err)
	for _, path := range cgroups {
		if err := unix.Rmdir(path); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove cgroup %s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}

// Unmount takes off what is mounted at a path, if anything is.
func Unmount(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return nil
}
