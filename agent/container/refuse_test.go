// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// base is a specification with nothing special in it.
func base() *specs.Spec {
	return &specs.Spec{
		Process: &specs.Process{Args: []string{"true"}, Cwd: "/"},
		Root:    &specs.Root{Path: "/host/rootfs"},
		Linux:   &specs.Linux{},
	}
}

func parsed(t *testing.T, text string) *specs.Spec {
	t.Helper()
	spec := base()
	if err := json.Unmarshal([]byte(text), spec); err != nil {
		t.Fatal(err)
	}
	return spec
}

func TestWhatTheGuestCannotDoIsRefusedByName(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ config, names string }{
		{`{"solaris":{}}`, "solaris"},
		{`{"windows":{}}`, "windows"},
		{`{"vm":{"kernel":{"path":"/k"}}}`, "vm"},
		{`{"process":{"cwd":"relative"}}`, "process.cwd"},
		{`{"process":{"cwd":""}}`, "process.cwd"},
		{`{"process":{"args":[]}}`, "process.args"},
		{`{"process":{"args":["a\u0000b"]}}`, "NUL"},
		{`{"process":{"apparmorProfile":"docker-default"}}`, "process.apparmorProfile"},
		{`{"process":{"user":{"username":"bob"}}}`, "process.user.username"},
		{`{"linux":{"namespaces":[{"type":"tomorrow"}]}}`, "tomorrow"},
		{`{"linux":{"uidMappings":[{"containerID":0,"hostID":1000,"size":1}]}}`, "linux.uidMappings"},
		{`{"linux":{"gidMappings":[{"containerID":0,"hostID":1000,"size":1}]}}`, "linux.gidMappings"},
		{`{"linux":{"timeOffsets":{"boottime":{"secs":1}}}}`, "linux.timeOffsets"},
		{`{"linux":{"intelRdt":{"closID":"x"}}}`, "linux.intelRdt"},
		{`{"linux":{"netDevices":{"eth0":{}}}}`, "linux.netDevices"},
		{`{"linux":{"memoryPolicy":{"mode":"MPOL_BIND"}}}`, "linux.memoryPolicy"},
		{`{"linux":{"personality":{"domain":"LINUX","flags":["X"]}}}`, "linux.personality.flags"},
		{`{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/x"}}}`, "linux.seccomp.listenerPath"},
		{`{"linux":{"resources":{"memory":{"kernel":1}}}}`, "memory.kernel"},
		{`{"linux":{"resources":{"memory":{"kernelTCP":1}}}}`, "memory.kernelTCP"},
		{`{"linux":{"resources":{"memory":{"swappiness":10}}}}`, "memory.swappiness"},
		{`{"linux":{"resources":{"memory":{"disableOOMKiller":true}}}}`, "memory.disableOOMKiller"},
		{`{"linux":{"resources":{"memory":{"useHierarchy":false}}}}`, "memory.useHierarchy"},
		{`{"linux":{"resources":{"cpu":{"realtimeRuntime":1}}}}`, "cpu.realtimeRuntime"},
		{`{"linux":{"resources":{"blockIO":{"leafWeight":100}}}}`, "blockIO.leafWeight"},
		{`{"linux":{"resources":{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1}]}}}}`, "throttleReadBpsDevice"},
		{`{"linux":{"resources":{"network":{"classID":1}}}}`, "network.classID"},
		{`{"linux":{"resources":{"network":{"priorities":[{"name":"eth0","priority":1}]}}}}`, "network.priorities"},
		{`{"linux":{"resources":{"rdma":{"mlx5_1":{"hcaHandles":1}}}}}`, "rdma"},
		{`{"linux":{"resources":{"unified":{"cgroup.freeze":"1"}}}}`, "cgroup.freeze"},
		{`{"linux":{"resources":{"unified":{"..":"1"}}}}`, "unified"},
		{`{"linux":{"resources":{"unified":{"memory.max/../cgroup.kill":"1"}}}}`, "cgroup.kill"},
		{`{"linux":{"devices":[{"path":"/dev/x","type":"q"}]}}`, "/dev/x"},
		{`{"mounts":[{"destination":"/data","type":"bind","source":"/srv"}]}`, "/srv"},
		{`{"mounts":[{"destination":"/data","type":"nfs","source":"h:/x"}]}`, "nfs"},
		{`{"mounts":[{"destination":"/data","type":"tmpfs","options":["idmap"]}]}`, "other owners"},
	} {
		t.Run(c.names, func(t *testing.T) {
			t.Parallel()
			_, err := translate(parsed(t, c.config), "key", layout{share: t.TempDir(), rootfs: "key/rootfs"}, nil)
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.names) {
				t.Errorf("%s: got error %v, want a refusal that names %q", c.config, err, c.names)
			}
		})
	}
}

func TestWhatEnginesWriteForNothingIsAccepted(t *testing.T) {
	t.Parallel()
	for _, config := range []string{
		`{"process":{"apparmorProfile":"unconfined"}}`,
		`{"linux":{"resources":{"memory":{"kernel":0,"swap":0,"disableOOMKiller":false,"useHierarchy":true}}}}`,
		`{"linux":{"resources":{"blockIO":{"weight":0}}}}`,
		`{"linux":{"resources":{"cpu":{"realtimeRuntime":0,"realtimePeriod":0}}}}`,
		`{"linux":{"resources":{"network":{}}}}`,
		`{"hooks":{"prestart":[{"path":"/x"}],"poststop":[{"path":"/x"}]}}`,
		`{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"},{"type":"network","path":"/x"}],"cgroupsPath":"/docker/x"}}`,
		`{"annotations":{"a":"b"},"unknown":true}`,
	} {
		if _, err := translate(parsed(t, config), "key", layout{share: t.TempDir(), rootfs: "key/rootfs"}, nil); err != nil {
			t.Errorf("%s: %v", config, err)
		}
	}
}
