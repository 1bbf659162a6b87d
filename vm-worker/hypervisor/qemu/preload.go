// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"sync"

	"github.com/hashicorp/go-hclog"

	"bulkhead/vm-worker/jail"
)

// Preload is the name of the library that keeps memory that a guest was not given from it, lets QEMU before 9.2 make
// special files on the share, and gives back what guests from a template have free;
// the sources in preload/ say how and why.
const Preload = "bulkhead-qemu-special-files.so"

// jailPreload is where the jail shows it.
const jailPreload = "/preload.so"

// preload finds the library, once. A host without it does without.
type preload struct {
	path string // from Options: empty means beside the program, or where packages put it

	once  sync.Once
	found string
}

// find returns the library's path, or nothing.
func (p *preload) find(version [2]int, log hclog.Logger) string {
	p.once.Do(func() {
		p.found = findLibrary(libraryPlaces(p.path, Preload))
		if p.found == "" && (version[0] < 9 || version[0] == 9 && version[1] < 2) {
			log.Warn("containers cannot make FIFOs, sockets and device nodes on shared file systems: this QEMU needs a library that is not there",
				"qemu_version", version, "looked_for", libraryPlaces(p.path, Preload))
		}
	})
	return p.found
}

// preloaded adds the library to a jail, which is told by env what to do.
func preloaded(c jail.Config, library string, env []string) jail.Config {
	if library != "" {
		c.Binds = append(c.Binds, jail.Bind{Source: library, Target: jailPreload})
		c.Env = append(append(c.Env, "LD_PRELOAD="+jailPreload), env...)
	}
	return c
}
