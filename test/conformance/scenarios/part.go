// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package scenarios

import "bulkhead/test/conformance"

// Part is the scenarios of all engines; crictl is the path of that program.
func Part(crictl string) conformance.Part {
	return conformance.Part{
		Name: "scenarios",
		About: "What people do with engines: Docker, containerd's `ctr`, Podman (with conmon) and CRI (containerd with `crictl`). The engines are those of Debian's packages. " +
			"Each scenario is run for both runtimes and held to the same output, exit code and record; each command has a deadline; " +
			"after the last one of a group, the host is searched for what is left.",
		Groups: []conformance.Group{
			group("docker", openDocker, append(dockerChains, ctrChains...)),
			group("podman", openPodman, podmanChains),
			group("crictl", openCRI(crictl), criChains),
		},
	}
}

// differs declares that Bulkhead does not do what runc does, and says so, or has
// the tests say so, in certain words.
func differs(words, reason string) map[string]conformance.Declaration {
	return map[string]conformance.Declaration{conformance.Bulkhead: conformance.FailsSaying(words, reason)}
}

const notTheGuests = "the processes that the program starts are the guest kernel's: the host's process table, in which engines look, has the container's relays alone"
