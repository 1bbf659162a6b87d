// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import "sync"

// unplugs are the waits for devices to be gone.
type unplugs struct {
	mu      sync.Mutex
	waiting map[string]chan struct{} // guarded by mu
}

// expect returns what is closed once QEMU says that the device is gone. Only
// one may wait for a device; a container's disks are detached once.
func (u *unplugs) expect(id string) <-chan struct{} {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.waiting == nil {
		u.waiting = map[string]chan struct{}{}
	}
	gone := make(chan struct{})
	u.waiting[id] = gone
	return gone
}

func (u *unplugs) forget(id string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.waiting, id)
}

func (u *unplugs) happened(id string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if gone := u.waiting[id]; gone != nil {
		close(gone)
		delete(u.waiting, id)
	}
}
