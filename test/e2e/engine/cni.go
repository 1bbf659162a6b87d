// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
)

// cniPlugins is where Debian's package containernetworking-plugins puts them.
const cniPlugins = "/usr/lib/cni"

// cniNetwork is a network of CNI as people have it: a bridge that is the gateway,
// masquerading, published ports, and addresses of the host's own books.
type cniNetwork struct {
	name    string
	bridge  string
	subnets []string
}

// write makes it known to who reads the directory; the addresses in use are noted
// in another one.
func (n cniNetwork) write(dir, addresses string) error {
	type object = map[string]any
	var ranges [][]object
	var routes []object
	for _, subnet := range n.subnets {
		ranges = append(ranges, []object{{"subnet": subnet}})
		everywhere := "0.0.0.0/0"
		if netip.MustParsePrefix(subnet).Addr().Is6() {
			everywhere = "::/0"
		}
		routes = append(routes, object{"dst": everywhere})
	}
	text, err := json.MarshalIndent(object{
		"cniVersion": "0.4.0", "name": n.name, "plugins": []object{
			{
				"type": "bridge", "bridge": n.bridge, "isGateway": true, "ipMasq": true, "hairpinMode": true,
				"ipam": object{"type": "host-local", "dataDir": addresses, "ranges": ranges, "routes": routes},
			},
			{"type": "portmap", "capabilities": object{"portMappings": true}},
			{"type": "firewall"},
			{"type": "tuning"},
		},
	}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, n.name+".conflist"), text, 0o600)
}
