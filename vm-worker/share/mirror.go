// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package share

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Followed is a directory of the host that was attached to a VM and whose later
// mounts are to appear there too.
type Followed struct {
	Source   string // absolute on the host, no symbolic link in it
	MountID  uint64 // of the host's mount that holds Source
	Nested   bool   // also what is mounted upon the mounts that appear
	Place    string // below the share
	ReadOnly bool
}

// mountEntry is a line of a mount table (proc_pid_mountinfo(5)).
type mountEntry struct {
	id, parent uint64
	device     string // major:minor
	root       string // the directory of the file system that is mounted
	point      string
	propagates bool // what is mounted on it appears elsewhere: it is shared, or a slave
}

// sameAs tells whether two entries show the same files.
func (e mountEntry) sameAs(other mountEntry) bool {
	return e.device == other.device && e.root == other.root
}

func parseMountinfo(text string) ([]mountEntry, error) {
	infos, err := mountinfo.GetMountsFromReader(strings.NewReader(text), nil)
	if err != nil {
		return nil, fmt.Errorf("reading a mount table: %w", err)
	}
	var entries []mountEntry
	for _, m := range infos {
		e := mountEntry{id: uint64(m.ID), parent: uint64(m.Parent), device: fmt.Sprintf("%d:%d", m.Major, m.Minor), root: m.Root, point: m.Mountpoint}
		for tag := range strings.FieldsSeq(m.Optional) {
			e.propagates = e.propagates || strings.HasPrefix(tag, "shared:") || strings.HasPrefix(tag, "master:")
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// below gives the place of p relative to dir, "." for dir itself.
func below(dir, p string) (rel string, ok bool) {
	switch {
	case p == dir:
		return ".", true
	case dir == "/":
		return p[1:], true
	}
	return strings.CutPrefix(p, dir+"/")
}

// mirrored is a mount beneath a followed directory, on either side.
type mirrored struct {
	mountEntry
	rel string
	// appears: the kernel would propagate it, had the attached mount been made a slave.
	appears bool
}

// onHost lists what the host has mounted beneath the directory, parents first.
func (f Followed) onHost(table []mountEntry) ([]mirrored, error) {
	base := slices.IndexFunc(table, func(e mountEntry) bool { return e.id == f.MountID })
	if base < 0 {
		return nil, fmt.Errorf("mount %d, which holds %s, is not in the worker's mount table", f.MountID, f.Source)
	}
	carries := map[uint64]bool{f.MountID: table[base].propagates} // mounts beneath which others appear
	var found []mirrored
	for more := true; more; { // the table need not name parents first
		more = false
		for _, e := range table {
			rel, inside := below(f.Source, e.point)
			_, known := carries[e.id]
			appears, follows := carries[e.parent]
			if known || !follows || !inside {
				continue
			}
			found = append(found, mirrored{e, rel, appears})
			carries[e.id] = f.Nested && appears && e.propagates
			more = true
		}
	}
	return found, nil
}

// attached lists what is attached beneath the directory's place in the VM, from
// the mount table of the VM's process.
func (f Followed) attached(table []mountEntry) ([]mirrored, error) {
	var found []mirrored
	here := false // the followed mount itself was passed
	for _, e := range table {
		rel, inside := below(path.Join(ExportDir, f.Place), e.point)
		switch {
		case !inside:
		case !here && rel == ".":
			here = true
		default:
			found = append(found, mirrored{mountEntry: e, rel: rel})
		}
	}
	if !here {
		return nil, fmt.Errorf("nothing is attached at %s", f.Place)
	}
	return found, nil
}

// differences says what to do so that the VM has what the host has: take off, in
// this order, and put on, in this order. Mounts that lie on one another at one
// place are compared from the lowest up.
func differences(host, vm []mirrored) (takeOff []string, putOn []mirrored) {
	stacks := map[string][]mirrored{}
	for _, m := range host {
		stacks[m.rel] = append(stacks[m.rel], m)
	}
	have := map[string][]mirrored{}
	var places []string
	for _, m := range vm {
		if have[m.rel] == nil {
			places = append(places, m.rel)
		}
		have[m.rel] = append(have[m.rel], m)
	}
	slices.SortStableFunc(places, func(a, b string) int { return depth(a) - depth(b) })
	kept := map[string]int{}
	for _, rel := range places {
		n := 0
		beneathOne := slices.ContainsFunc(takeOff, func(above string) bool { return strings.HasPrefix(rel, above+"/") || above == "." })
		for !beneathOne && n < len(have[rel]) && n < len(stacks[rel]) && have[rel][n].sameAs(stacks[rel][n].mountEntry) {
			n++
		}
		kept[rel] = n
		for range have[rel][n:] {
			takeOff = append(takeOff, rel)
		}
	}
	slices.Reverse(takeOff) // what lies deepest goes first
	for _, m := range host {
		if kept[m.rel] > 0 {
			kept[m.rel]--
		} else if m.appears {
			putOn = append(putOn, m)
		}
	}
	return takeOff, putOn
}

func depth(rel string) int {
	if rel == "." {
		return 0
	}
	return 1 + strings.Count(rel, "/")
}
