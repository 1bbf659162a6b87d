// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"

	"bulkhead/agent/reaper"
)

// Config is what a Manager needs from the rest of the agent.
type Config struct {
	Log     hclog.Logger
	Reaper  *reaper.Reaper
	Streams Streams
	// OOMKilled is told how many processes of a container the kernel has killed for want of memory, each time it has.
	OOMKilled func(container string, kills uint64)
	Exited    func(Exited)                    // told about every process that ended; must not block for long
	Labels    func(label string) (known bool) // asks the guest's SELinux policy; nil when it has none
	// Prepare is called before each create: the share of this tag must be there afterwards, with this SELinux label, where it says.
	Prepare func(_ context.Context, tag, label string) (dir string, err error)
	// FindDisk waits for the disk with a serial number and returns its device node.
	FindDisk func(ctx context.Context, serial string) (string, error)
	// MoveNetwork puts the guest's network into the namespace of a process, and writes files of
	// /proc/sys there.
	MoveNetwork func(ctx context.Context, pid int, parameters map[string]string) error
	// WeighDisk makes the weights of cgroups count on a disk.
	WeighDisk func(major, minor int64) error
	StateDir  string // libcontainer's state; a tmpfs
	MemoryDir string // where the memories that containers share are mounted
}

// Exited is the end of one process.
type Exited struct {
	Container string
	ExecID    string // empty: the container's init
	Code      int    // 128+n when signal n ended it
	OOMKilled bool
}

// Manager holds the containers of the guest. Its methods may be called
// concurrently; what one container does never waits for another.
type Manager struct {
	cfg     Config
	waiters sync.WaitGroup
	forks   forks

	mu         sync.Mutex // guards containers
	containers map[string]*Container

	memoryMu sync.Mutex     // guards memories and their mounts
	memories map[string]int // how many containers have each
}

// NewManager returns a manager without containers.
func NewManager(cfg Config) *Manager {
	return &Manager{cfg: cfg, containers: make(map[string]*Container), memories: make(map[string]int)}
}

// validKey accepts what may become a directory and a cgroup: the host's
// container keys (docs/architecture.md, "Subjects").
func validKey(key string) error {
	ok := key != "" && len(key) <= 255 && key != "." && key != ".."
	for _, r := range key {
		ok = ok && (r == '-' || r == '_' || r == '.' || r == '+' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z')
	}
	if !ok {
		return fmt.Errorf("%w: container key %q: use 1 to 255 of A-Z a-z 0-9 _ . + -", ErrInvalid, key)
	}
	return nil
}

// reserve makes the name of a container taken.
func (m *Manager) reserve(key string) (*Container, error) {
	if err := validKey(key); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, taken := m.containers[key]; taken {
		return nil, ErrExists
	}
	c := &Container{
		m: m, key: key, log: m.cfg.Log.With("container", key), cgroup: cgroupOf(key),
		lifecycle: newGate(), freezing: newGate(), changed: make(chan struct{}), status: Creating, execs: make(map[string]*process),
	}
	m.containers[key] = c
	return c, nil
}

func (m *Manager) forget(c *Container) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.containers[c.key] == c {
		delete(m.containers, c.key)
	}
}

// Get finds a container; ErrNotExist when there is none.
func (m *Manager) Get(key string) (*Container, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, ok := m.containers[key]
	if !ok {
		return nil, ErrNotExist
	}
	return c, nil
}

// Keys lists the containers, sorted.
func (m *Manager) Keys() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	keys := make([]string, 0, len(m.containers))
	for key := range m.containers {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, strings.Compare)
	return keys
}

// List describes every container.
func (m *Manager) List() []Info {
	var list []Info
	for _, key := range m.Keys() {
		if c, err := m.Get(key); err == nil {
			list = append(list, c.Info())
		}
	}
	return list
}

// Delete removes a container, killing it first. Deleting what does not exist is
// not an error.
func (m *Manager) Delete(ctx context.Context, key string) error {
	c, err := m.Get(key)
	if err != nil {
		return nil
	}
	return c.remove(ctx)
}

// Close deletes every container and waits for all processes, as long as the
// context allows. A process that cannot be killed is left to the machine's end.
func (m *Manager) Close(ctx context.Context) error {
	var errs []error
	for _, key := range m.Keys() {
		if err := m.Delete(ctx, key); err != nil {
			errs = append(errs, fmt.Errorf("deleting container %q: %w", key, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	m.waiters.Wait()
	return nil
}
