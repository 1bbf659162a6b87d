// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// splitSysctl separates the parameters that libcontainer sets in the
// container's namespaces, among them the network's if it has one, from those of the whole guest. The second kind is
// allowed as well: the kernel is the container's own.
func splitSysctl(all map[string]string, ownNetwork bool) (namespaced, guest map[string]string) {
	for key, value := range all {
		name := dotted(key)
		if slices.Contains(namespacedSysctls, name) || strings.HasPrefix(name, "fs.mqueue.") || ownNetwork && strings.HasPrefix(name, "net.") {
			if namespaced == nil {
				namespaced = make(map[string]string)
			}
			namespaced[key] = value
			continue
		}
		if guest == nil {
			guest = make(map[string]string)
		}
		guest[key] = value
	}
	return namespaced, guest
}

// splitLinkSysctl separates the parameters of single network devices, as files, from the others:
// these devices come into the container's namespace when it is there.
func splitLinkSysctl(all map[string]string) (others, links map[string]string, err error) {
	others, links = map[string]string{}, map[string]string{}
	for key, value := range all {
		parts := strings.Split(dotted(key), ".")
		ofLink := len(parts) == 5 && parts[0] == "net" && (parts[2] == "conf" || parts[2] == "neigh") && !slices.Contains([]string{"all", "default", "lo"}, parts[3])
		if !ofLink {
			others[key] = value
			continue
		}
		path, err := sysctlPath("/proc/sys", key)
		if err != nil {
			return nil, nil, err
		}
		links[path] = value
	}
	return others, links, nil
}

// dotted returns the form with dots as separators. Both separators are allowed, the
// first one in the name decides, and the other then stands for a literal
// character of an element (sysctl(8)): net/ipv4/conf/eno2.100/forwarding.
func dotted(key string) string {
	if i := strings.IndexAny(key, "./"); i < 0 || key[i] == '.' {
		return key
	}
	return swapSeparators(key)
}

func swapSeparators(key string) string {
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, key)
}

// sysctlPath is the file of a parameter below root, which is /proc/sys.
func sysctlPath(root, key string) (string, error) {
	path := swapSeparators(dotted(key))
	if !filepath.IsLocal(path) {
		return "", fmt.Errorf("%w: linux.sysctl %q is not the name of a kernel parameter", ErrInvalid, key)
	}
	return filepath.Join(root, path), nil
}

// applySysctl writes the parameters of the guest and returns what puts the old
// values back.
func applySysctl(root string, values map[string]string) (undo func(), err error) {
	old := make(map[string][]byte)
	undo = func() {
		for path, value := range old {
			// Best effort: a parameter that can be set once only stays set.
			_ = os.WriteFile(path, value, 0)
		}
	}
	for key, value := range values {
		path, err := sysctlPath(root, key)
		if err != nil {
			undo()
			return nil, err
		}
		before, err := os.ReadFile(path)
		if err != nil {
			undo()
			return nil, fmt.Errorf("%w: linux.sysctl %q: reading its present value in the guest: %w", ErrInvalid, key, err)
		}
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			undo()
			return nil, fmt.Errorf("%w: linux.sysctl %q = %q: %w", ErrInvalid, key, value, err)
		}
		old[path] = before
	}
	return undo, nil
}
