// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmv1

// PodAnnotation is a pair of annotations by which an engine says that a container
// belongs into the sandbox of another one, and so into its VM: Kind has the value
// "container", and Sandbox is the id of the sandbox's first container.
type PodAnnotation struct{ Kind, Sandbox string }

// PodMember is the value of Kind for a container that joins a sandbox.
const PodMember = "container"

// PodAnnotations are those of containerd's CRI plugin, then of CRI-O and Podman.
func PodAnnotations() []PodAnnotation {
	return []PodAnnotation{
		{"io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"},
		{"io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"},
	}
}
