// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package memory

import "time"

const (
	cacheStep  = 32 * mib         // given up at a time, at most
	cacheLeast = 8 * mib          // too little to bother the containers for
	cacheTruce = 60 * time.Second // after something that was given up was read again
)

// cache is what was found of the files that the containers have cached.
type cache struct {
	refaults uint64    // pages that were given up and read again, so far
	truce    time.Time // until when nothing is given up
}

// trimCache gives up a part of the cached files that were not used lately: what is
// free goes back to the host, and a machine may get smaller by it. It leaves off when the
// containers read again what was given up. Asked to do it now, for another machine that needs the memory, it gives up
// all that was not used lately, and half of what is in use only when there is nothing else.
func (g *Governor) trimCache(now bool) {
	if g.machine.Has <= g.machine.Base {
		return
	}
	refaults := g.group.keyed("memory.stat", "workingset_refault_file")
	again := refaults - min(refaults, g.cache.refaults)
	g.cache.refaults = refaults
	if !now && again > cacheLeast/4096/8 {
		g.cache.truce = time.Now().Add(cacheTruce)
	}
	if !now && time.Now().Before(g.cache.truce) {
		return
	}
	inactive := g.group.keyed("memory.stat", "inactive_file")
	cached := inactive + g.group.keyed("memory.stat", "active_file")
	bytes := min(inactive/4, cacheStep)
	if now {
		if bytes = inactive; bytes < cacheLeast {
			bytes = cached / 2
		}
	}
	if cached < cacheLeast || bytes < mib {
		return
	}
	// It may find less than asked for, which is no mistake (EAGAIN).
	if err := g.group.write("memory.reclaim", bytes); err != nil {
		g.cfg.Log.Debug("fewer cached files given up than could be", "bytes", bytes, "error", err)
	}
}
