// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/vm-worker/hostcgroup"
)

// The cgroups of what no container has. They have no limits.
const (
	// making is that of VMs for the pool, while they are being made and while they wait.
	making = "pool"
	// forking is that of templates and of the processes that fork VMs from them. A create waits for these, and until there is a
	// template every VM boots, so they weigh as much as a container: with less they come last on a host whose
	// processors are all busy, which is busy for as long as VMs boot.
	forking = "zygote"
)

// stockShares are the weights of these cgroups (cpu.shares); a container's is 1024.
var stockShares = map[string]uint64{making: 64, forking: 1024}

// stockCgroups makes each when it is needed.
type stockCgroups struct {
	w *Worker

	mu     sync.Mutex                    // guards byName; a leaf
	byName map[string]*hostcgroup.Cgroup // those that are made
}

func (s *stockCgroups) file(name string) string {
	return filepath.Join(s.w.store.dir, name+"-cgroup.json")
}

func (s *stockCgroups) get(name string) (*hostcgroup.Cgroup, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.byName[name]; c != nil {
		return c, nil
	}
	shares := stockShares[name]
	spec := &specs.Spec{Linux: &specs.Linux{Resources: &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &shares}}}}
	// Several daemons may share a host, each with a directory of its own.
	key := name + "-" + strings.ReplaceAll(strings.Trim(s.w.runDir, "/"), "/", "-")
	c, err := hostcgroup.Create(spec, key, hostcgroup.Options{StateFile: s.file(name)})
	if err != nil {
		return nil, fmt.Errorf("the cgroup of the pool: %w", err)
	}
	if s.byName == nil {
		s.byName = map[string]*hostcgroup.Cgroup{}
	}
	s.byName[name] = c
	return c, nil
}

// procs are the files by which a process enters the cgroup.
func (s *stockCgroups) procs(name string) ([]string, error) {
	c, err := s.get(name)
	if err != nil {
		return nil, err
	}
	return c.ProcsPaths(), nil
}

// anonymous is the memory of no file that counts to all of them.
func (s *stockCgroups) anonymous() (sum uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.byName {
		n, readErr := c.Anonymous()
		sum, err = sum+n, errors.Join(err, readErr)
	}
	return sum, err
}

// remove removes them. What was in them has ended.
func (s *stockCgroups) remove(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, c := range s.byName {
		if err := s.removeOne(ctx, name, c); err != nil {
			s.log(err, "cgroup of the pool not removed", name)
		}
	}
	s.byName = nil
}

// removeLeft removes those of an earlier worker that was killed: of what was in them, the VMs were
// found by their directories, and what forks VMs ends with its worker.
func (s *stockCgroups) removeLeft(ctx context.Context) {
	for name := range stockShares {
		left, err := hostcgroup.Load(s.file(name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = s.removeOne(ctx, name, left)
		}
		if err != nil {
			s.log(err, "cgroup of an earlier pool not removed", name)
		}
	}
}

// log tells of what was not removed; threads of VMs that live end later, and the next worker comes by.
func (s *stockCgroups) log(err error, what, name string) {
	level := hclog.Warn
	if errors.Is(err, hostcgroup.ErrKernelThreads) {
		level = hclog.Debug
	}
	s.w.log.Log(level, what, "name", name, "error", err)
}

func (s *stockCgroups) removeOne(ctx context.Context, name string, c *hostcgroup.Cgroup) error {
	if err := c.Destroy(ctx); err != nil {
		return err
	}
	if err := os.Remove(s.file(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the cgroup of the pool: %w", err)
	}
	return nil
}
