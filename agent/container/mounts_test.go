// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"errors"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestMountsAreMadeFitForTheGuest(t *testing.T) {
	t.Parallel()
	mapping := []specs.LinuxIDMapping{{HostID: 1000, Size: 1}}
	for name, c := range map[string]struct {
		mount specs.Mount
		want  string // the options; or of the error
	}{
		"recursive attributes of a new file system": {
			specs.Mount{Destination: "/d", Type: "tmpfs", Options: []string{"rro", "rnosuid", "relatime", "size=1m", "rprivate"}},
			"ro nosuid relatime size=1m rprivate",
		},
		"recursive attributes of a bind": {specs.Mount{Destination: "/d", Type: "bind", Options: []string{"rbind", "rro"}}, "rbind rro"},
		"owners that the host has mapped": {
			specs.Mount{Destination: "/d", Type: "bind", Options: []string{"ridmap", "bind"}, UIDMappings: mapping, GIDMappings: mapping}, "bind",
		},
		"owners of the guest's own": {specs.Mount{Destination: "/d", Type: "tmpfs", UIDMappings: mapping}, "only files of the host"},
		"a file system nobody has":  {specs.Mount{Destination: "/d", Type: "overlay"}, "not supported in the guest"},
	} {
		l := layout{share: "/share", rootfs: "k/rootfs"}
		if isBind(c.mount) {
			l.shares = []Share{{Destination: "/d", Source: "k/m0"}}
		}
		out, err := translateMounts([]specs.Mount{c.mount}, l)
		if err != nil {
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %q", name, err, c.want)
			}
			continue
		}
		if got := strings.Join(out[0].Options, " "); got != c.want {
			t.Errorf("%s: %q instead of %q", name, got, c.want)
		}
		if len(out[0].UIDMappings)+len(out[0].GIDMappings) > 0 {
			t.Errorf("%s: the mappings are still there", name)
		}
		if isBind(c.mount) && out[0].Source != "/share/k/m0" {
			t.Errorf("%s: the source is %s", name, out[0].Source)
		}
	}
}

// TestEveryRecursiveAttributeIsKnown: each is a plain one with an r before it.
func TestEveryRecursiveAttributeIsKnown(t *testing.T) {
	t.Parallel()
	all := strings.Fields("rro rrw rnosuid rsuid rnodev rdev rnoexec rexec rnodiratime rdiratime rrelatime rnorelatime " +
		"rnoatime ratime rstrictatime rnostrictatime rnosymfollow rsymfollow") // config.md#linux-mount-options
	for i, plain := range notRecursive(all) {
		if "r"+plain != all[i] {
			t.Errorf("%s becomes %s", all[i], plain)
		}
	}
	plain := []string{"ro", "rw", "relatime", "rbind", "rslave", "rprivate", "remount"}
	if got := notRecursive(plain); !slices.Equal(got, plain) {
		t.Errorf("%v becomes %v", plain, got)
	}
}
