// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"debug/elf"
	"fmt"
	"slices"
	"sync"

	"github.com/hashicorp/go-hclog"

	"bulkhead/vm-worker/hypervisor"
)

// growthBackend is the memory behind the device by which a VM's memory grows.
const growthBackend = "growth"

// newestHeld is the newest QEMU of which the structures are known that preload/growth.c shares with it.
const newestHeld = 10

// heldBy are the functions of QEMU that preload/growth.c calls.
var heldBy = []string{
	"object_resolve_path", "host_memory_backend_get_memory", "memory_region_get_ram_discard_manager",
	"memory_region_get_ram_ptr", "memory_region_size", "ram_discard_manager_register_listener",
}

// growthHold keeps memory that a guest was not given out of its reach. QEMU itself maps all that the VM may
// grow by; the preloaded library makes what is not plugged inaccessible (preload/growth.c).
type growthHold struct {
	once sync.Once
	why  string // it cannot be done with this QEMU; empty: it can
}

// hold is what tells the library in the QEMU of a VM to do so. A QEMU that is told does it or does not run.
func (g *growthHold) hold(s hypervisor.Spec, binary string, version [2]int, library string, log hclog.Logger) []string {
	if growthMiB(s) == 0 {
		return nil
	}
	g.once.Do(func() {
		if g.why = whyNotHeld(binary, version, library); g.why != "" {
			log.Warn("a guest that breaks the rules of its memory device can use memory that it was not given, up to what its host cgroup allows", "reason", g.why)
		}
	})
	if g.why != "" {
		return nil
	}
	return []string{"BULKHEAD_GROWTH=/objects/" + growthBackend}
}

func whyNotHeld(binary string, version [2]int, library string) string {
	if library == "" {
		return fmt.Sprintf("the library %s is not there", Preload)
	}
	if version[0] > newestHeld {
		return fmt.Sprintf("QEMU %d.%d is newer than what the library knows", version[0], version[1])
	}
	program, err := elf.Open(binary)
	if err != nil {
		return fmt.Sprintf("%s cannot be read: %v", binary, err)
	}
	defer program.Close()
	symbols, err := program.DynamicSymbols()
	if err != nil {
		return fmt.Sprintf("the symbols of %s cannot be read: %v", binary, err)
	}
	for _, name := range heldBy {
		if !slices.ContainsFunc(symbols, func(s elf.Symbol) bool { return s.Name == name && s.Section != elf.SHN_UNDEF }) {
			return fmt.Sprintf("%s does not export %s", binary, name)
		}
	}
	return ""
}
