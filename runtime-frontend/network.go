// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strings"
)

// fallbackDevices appear in every new network namespace of a host that has the
// tunnel modules loaded; nobody put them there.
var fallbackDevices = []string{
	"lo", "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0",
}

// checkNetwork refuses a container whose network namespace got an interface,
// by a hook, a CNI plugin or, from Docker 28 on, between create and start: the VM would not have it.
func checkNetwork(pid int32) error {
	f, err := os.Open(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		return fmt.Errorf("looking into the container's network namespace: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, _, isDevice := strings.Cut(strings.TrimSpace(lines.Text()), ":")
		if isDevice && !slices.Contains(fallbackDevices, name) {
			return fmt.Errorf("the container's network namespace has the interface %q: this version gives VMs no network yet: use --network none", name)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("looking into the container's network namespace: %w", err)
	}
	return nil
}
