// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"sync"

	"bulkhead/bus"
)

// The states of a container, as the agent names them.
const (
	created = "created"
	running = "running"
	paused  = "paused"
	stopped = "stopped"
)

// container is the processes of a fake container.
type container struct {
	key string

	mu     sync.Mutex
	init   *process            // set before the container is found, never changed
	execs  map[string]*process // guarded by mu
	paused bool                // guarded by mu

	resources string // guarded by mu: as the last update told them
}

// status follows from the init process.
func (c *container) status() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.init.ended():
		return stopped
	case c.paused:
		return paused
	case c.init.begun():
		return running
	}
	return created
}

// processes lists init first.
func (c *container) processes() []*process {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := []*process{c.init}
	for _, p := range c.execs {
		all = append(all, p)
	}
	return all
}

// find gives the process of an exec id, or init.
func (c *container) find(execID string) (*process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.init
	if execID != "" {
		p = c.execs[execID]
	}
	if p == nil || p.ended() {
		return nil, bus.Errorf(bus.FailedPrecondition, "process %q of container %s is not running", execID, c.key)
	}
	return p, nil
}

// add takes a further process in, unless its id is taken by a living one.
func (c *container) add(p *process) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.execs[p.execID]; old != nil && !old.ended() {
		return bus.Errorf(bus.AlreadyExists, "exec %q exists in container %s", p.execID, c.key)
	}
	c.execs[p.execID] = p
	return nil
}

// end kills every process and forgets their streams; code is what those still
// living report, 0 for none at all because the machine is gone.
func (c *container) end(code int) {
	for _, p := range c.processes() {
		p.kill(code)
		<-p.done
		p.stream.Close()
	}
}
