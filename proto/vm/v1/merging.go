// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmv1

import "fmt"

// The annotations by which a container says with whom its VM's memory may be merged.
const (
	// AnnotationKSM is "off" for a VM whose memory is never merged, "on" for the default.
	AnnotationKSM = "io.bulkhead.ksm"
	// AnnotationTrustClass names the class of the VM. Memory of different classes is never merged.
	AnnotationTrustClass = "io.bulkhead.trust-class"
)

// DefaultTrustClass is that of a VM for which none was chosen.
const DefaultTrustClass = "default"

// Merging is what a container's annotations say of merging.
type Merging struct {
	Class string // empty: none was chosen
	Off   bool   // not to be merged, whatever the class
}

// maxTrustClass bounds the name of a class.
const maxTrustClass = 63

// ReadMerging reads a container's annotations.
func ReadMerging(annotations map[string]string) (Merging, error) {
	m := Merging{Class: annotations[AnnotationTrustClass]}
	switch v, ok := annotations[AnnotationKSM]; {
	case v == "off":
		m.Off = true
	case ok && v != "on":
		return m, fmt.Errorf("annotation %s is %q; it may be on or off", AnnotationKSM, v)
	}
	if _, ok := annotations[AnnotationTrustClass]; ok && !TrustClassName(m.Class) {
		return m, fmt.Errorf("annotation %s is %q; a class is 1 to %d characters of A-Z a-z 0-9 _ . -", AnnotationTrustClass, m.Class, maxTrustClass)
	}
	return m, nil
}

// TrustClassName says whether s can be the name of a class.
func TrustClassName(s string) bool {
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '_', r == '.', r == '-':
		default:
			return false
		}
	}
	return s != "" && len(s) <= maxTrustClass
}
