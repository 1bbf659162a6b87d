// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmv1

// Word is the runtime-spec's word for the status (runtime-spec,
// runtime.md#state). A status that is not known counts as stopped.
func (s ContainerStatus) Word() string {
	switch s {
	case ContainerStatus_CONTAINER_STATUS_CREATING:
		return "creating"
	case ContainerStatus_CONTAINER_STATUS_CREATED:
		return "created"
	case ContainerStatus_CONTAINER_STATUS_RUNNING:
		return "running"
	case ContainerStatus_CONTAINER_STATUS_PAUSED:
		return "paused"
	default:
		return "stopped"
	}
}
