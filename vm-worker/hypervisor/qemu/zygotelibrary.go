// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"bulkhead/vm-worker/jail"

	"golang.org/x/sys/unix"
)

// Zygote is the name of the library that makes a QEMU a zygote; preload/zygote/zygote.h says how.
const Zygote = "bulkhead-qemu-zygote.so"

// jailZygote is where the jail shows it.
const jailZygote = "/zygote.so"

// zygoteLibrary finds the library.
type zygoteLibrary struct {
	path string // from Options: empty means beside the program, or where packages put it
}

// find returns the library's path, or nothing where there is none or it does not work.
func (z zygoteLibrary) find() string { return findLibrary(z.places()) }

// places are where it is looked for; none where it does not work.
func (z zygoteLibrary) places() []string {
	if runtime.GOARCH != "amd64" {
		return nil
	}
	return libraryPlaces(z.path, Zygote)
}

// findLibrary returns the first that is there.
func findLibrary(places []string) string {
	for _, c := range places {
		if info, err := os.Stat(c); err == nil && info.Mode().IsRegular() {
			return c
		}
	}
	return ""
}

func libraryPlaces(path, name string) []string {
	if path != "" {
		return []string{path}
	}
	places := []string{"/usr/libexec/bulkhead/" + name}
	if self, err := os.Executable(); err == nil {
		places = append([]string{filepath.Join(filepath.Dir(self), name)}, places...)
	}
	return places
}

// zygoteJail makes a VM's jail that of a zygote: it has the rights to make the jails of its children and to drop the same
// rights in them, and no guest but that of a template ever runs in it.
func zygoteJail(c jail.Config, library string, control int) jail.Config {
	c.SharedPIDs = true
	c.Mergeable = false // children are, as they are ordered to
	c.Capabilities = append(append([]uintptr{}, c.Capabilities...), unix.CAP_SYS_ADMIN, unix.CAP_SETPCAP)
	c.Binds = append(c.Binds, jail.Bind{Source: library, Target: jailZygote})
	loaded := jailZygote
	for i, e := range c.Env {
		if before, ok := strings.CutPrefix(e, "LD_PRELOAD="); ok {
			c.Env = append(append([]string{}, c.Env[:i]...), c.Env[i+1:]...)
			loaded += ":" + before
			break
		}
	}
	c.Env = append(c.Env, "LD_PRELOAD="+loaded, "BULKHEAD_ZYGOTE="+strconv.Itoa(control))
	return c
}
