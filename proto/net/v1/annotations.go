// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package netv1

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// AnnotationPrefix begins the annotations of a container that say how its VM is
// joined to its network. They count where the container is the first of its VM.
const AnnotationPrefix = "io.bulkhead.network."

// The annotations, after their prefix.
const (
	annotationModel            = "model"             // tc, macvtap, bridge, none
	annotationQueues           = "queues"            // most queue pairs of a NIC, 1 to MaxQueues
	annotationSpoofing         = "spoofing"          // deny, allow
	annotationAllowedMACs      = "allowed-macs"      // with commas between
	annotationAllowedAddresses = "allowed-addresses" // addresses or prefixes, with commas between
)

// Annotations are the names of all of them.
func Annotations() []string {
	var names []string
	for _, what := range []string{annotationModel, annotationQueues, annotationSpoofing, annotationAllowedMACs, annotationAllowedAddresses} {
		names = append(names, AnnotationPrefix+what)
	}
	return names
}

// MaxQueues is the most queue pairs that a NIC may have.
const MaxQueues = 8

// Models are the ways to join a link to a VM.
func Models() []string { return []string{"tc", "macvtap", "bridge", "none"} }

// PolicyOf reads the annotations of a container. It is never nil without an error;
// what no annotation says is empty.
func PolicyOf(annotations map[string]string) (*Policy, error) {
	p := &Policy{}
	for _, name := range slices.Sorted(maps.Keys(annotations)) {
		what, ours := strings.CutPrefix(name, AnnotationPrefix)
		if !ours {
			continue
		}
		if err := p.read(what, annotations[name]); err != nil {
			return nil, fmt.Errorf("annotation %s: %w", name, err)
		}
	}
	return p, nil
}

func (p *Policy) read(what, value string) error {
	switch what {
	case annotationModel:
		if !slices.Contains(Models(), value) {
			return fmt.Errorf("unknown model %q: it is one of %s", value, strings.Join(Models(), ", "))
		}
		p.Model = value
	case annotationQueues:
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil || n < 1 || n > MaxQueues {
			return fmt.Errorf("%q is not a number of queues from 1 to %d", value, MaxQueues)
		}
		p.Queues = uint32(n)
	case annotationSpoofing:
		if value != "allow" && value != "deny" {
			return fmt.Errorf("%q is neither \"allow\" nor \"deny\"", value)
		}
		p.AllowSpoofing, p.DenySpoofing = value == "allow", value == "deny"
	case annotationAllowedMACs:
		for _, text := range items(value) {
			mac, err := net.ParseMAC(text)
			if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
				return fmt.Errorf("%q is not the MAC address of a device, like 02:42:ac:11:00:02", text)
			}
			p.AllowedMacs = append(p.AllowedMacs, mac.String())
		}
	case annotationAllowedAddresses:
		for _, text := range items(value) {
			prefix, err := prefixOf(text)
			if err != nil {
				return fmt.Errorf("%q is neither an IP address nor a prefix, like 10.0.0.0/24", text)
			}
			p.AllowedAddresses = append(p.AllowedAddresses, prefix.String())
		}
	default:
		return fmt.Errorf("there is no such annotation: there are %s", strings.Join(Annotations(), ", "))
	}
	return nil
}

func items(list string) []string {
	parts := strings.Split(list, ",")
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	return parts
}

// prefixOf takes an address for the prefix of itself alone.
func prefixOf(text string) (netip.Prefix, error) {
	if prefix, err := netip.ParsePrefix(text); err == nil {
		return prefix.Masked(), nil
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, err
	}
	if addr.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%s has a zone", addr)
	}
	return netip.PrefixFrom(addr, addr.BitLen()), nil
}
