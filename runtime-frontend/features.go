// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"encoding/json"

	"github.com/opencontainers/runtime-spec/specs-go/features"

	"bulkhead/bus/version"
	netv1 "bulkhead/proto/net/v1"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/runtime-frontend/bundle"
)

var featuresCommand = command{
	name: "features", usage: "print what this runtime can do as JSON", maxArgs: 0,
	description: "Prints the features structure of the OCI runtime-spec (features.md), written from the tables\n" +
		"by which bundles are judged: what is claimed here is carried out.",
	run: func(_ context.Context, inv *invocation) error {
		// Engines ask before anything is configured; where the configuration cannot be read, labels are not promised.
		cfg, err := inv.settings()
		selinux := err == nil && cfg.VM.SELinux
		enc := json.NewEncoder(inv.std.Out)
		enc.SetIndent("", "  ")
		return enc.Encode(newFeatures(selinux))
	},
}

// newFeatures derives each claim from the table that decides about it. selinux says whether the host's configuration
// allows labels.
func newFeatures(selinux bool) *features.Features {
	return &features.Features{
		OCIVersionMin: bundle.VersionMin,
		OCIVersionMax: bundle.VersionMax,
		Hooks:         bundle.HookNames(),
		MountOptions:  bundle.MountOptions(),
		Linux: &features.Linux{
			Namespaces:   bundle.Namespaces(),
			Capabilities: bundle.Capabilities(),
			Cgroup: &features.Cgroup{
				V1: claim(true), V2: claim(true), Systemd: claim(true), SystemdUser: claim(false),
				Rdma: claim(bundle.Carried("linux.resources.rdma")),
			},
			Seccomp: &features.Seccomp{
				Enabled:        claim(bundle.Carried("linux.seccomp.syscalls")),
				Actions:        bundle.SeccompActions(),
				Operators:      bundle.SeccompOperators(),
				Archs:          bundle.SeccompArchs(),
				KnownFlags:     bundle.KnownSeccompFlags(),
				SupportedFlags: bundle.SeccompFlags(),
			},
			Apparmor: &features.Apparmor{Enabled: claim(bundle.Carried("process.apparmorProfile"))},
			Selinux:  &features.Selinux{Enabled: claim(selinux && bundle.Carried("process.selinuxLabel") && bundle.Carried("linux.mountLabel"))},
			IntelRdt: &features.IntelRdt{Enabled: claim(bundle.Carried("linux.intelRdt"))},
			MountExtensions: &features.MountExtensions{
				IDMap: &features.IDMap{Enabled: claim(bundle.Carried("mounts[].uidMappings"))},
			},
			NetDevices: &features.NetDevices{Enabled: claim(bundle.Carried("linux.netDevices"))},
		},
		Annotations: map[string]string{"io.bulkhead.version": version.Version},

		PotentiallyUnsafeConfigAnnotations: unsafeAnnotations(),
	}
}

// unsafeAnnotations are those by which a container gets into the VM of another
// one, or its memory merged with those of another trust class: engines must not
// let a user choose them.
func unsafeAnnotations() []string {
	names := append([]string{vmv1.AnnotationTrustClass}, netv1.Annotations()...)
	for _, a := range vmv1.PodAnnotations() {
		names = append(names, a.Kind, a.Sandbox)
	}
	return names
}

func claim(b bool) *bool { return &b }
