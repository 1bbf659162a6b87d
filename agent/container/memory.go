// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Containers that share an IPC namespace share /dev/shm. Engines bind one tmpfs of
// the host into each; over 9p, two processes that map one file would not see each other's writes. So each such tmpfs is one of
// the guest's own, which lives as long as a container that has it.

// holdMemories mounts the shared memories that a container asks for, or finds those that
// another one has mounted. dropMemories is the reverse.
func (c *Container) holdMemories(shares []Share, label string) error {
	for _, s := range shares {
		if s.Memory == "" {
			continue
		}
		if err := c.m.holdMemory(s, label); err != nil {
			c.dropMemories()
			return err
		}
		c.memories = append(c.memories, s.Memory)
	}
	return nil
}

func (c *Container) dropMemories() {
	for _, name := range c.memories {
		if err := c.m.dropMemory(name); err != nil {
			c.log.Warn("shared memory not removed", "name", name, "error", err)
		}
	}
	c.memories = nil
}

func (m *Manager) holdMemory(s Share, label string) error {
	if err := validKey(s.Memory); err != nil {
		return fmt.Errorf("mount %q: name of its shared memory: %w", s.Destination, err)
	}
	m.memoryMu.Lock()
	defer m.memoryMu.Unlock()
	if m.memories[s.Memory] > 0 {
		m.memories[s.Memory]++
		return nil
	}
	dir := filepath.Join(m.cfg.MemoryDir, s.Memory)
	options := "mode=1777"
	if s.MemoryBytes > 0 {
		options += fmt.Sprintf(",size=%d", s.MemoryBytes)
	}
	if label != "" {
		options += fmt.Sprintf(",context=%q", label)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("mount %q: %w", s.Destination, err)
	}
	if err := unix.Mount("shm", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return errors.Join(fmt.Errorf("mount %q: making its shared memory with %q: %w", s.Destination, options, err), os.Remove(dir))
	}
	m.memories[s.Memory] = 1
	return nil
}

func (m *Manager) dropMemory(name string) error {
	m.memoryMu.Lock()
	defer m.memoryMu.Unlock()
	if m.memories[name]--; m.memories[name] > 0 {
		return nil
	}
	delete(m.memories, name)
	dir := filepath.Join(m.cfg.MemoryDir, name)
	return errors.Join(unix.Unmount(dir, unix.MNT_DETACH), os.Remove(dir))
}
