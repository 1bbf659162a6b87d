// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package share

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
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
	var entries []mountEntry
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 7 {
			return nil, fmt.Errorf("a mount table has the line %q", line)
		}
		id, idErr := strconv.ParseUint(fields[0], 10, 64)
		parent, parentErr := strconv.ParseUint(fields[1], 10, 64)
		if err := errors.Join(idErr, parentErr); err != nil {
			return nil, fmt.Errorf("a mount table has the line %q: %w", line, err)
		}
		e := mountEntry{id: id, parent: parent, device: fields[2], root: unescape(fields[3]), point: unescape(fields[4])}
		for _, tag := range fields[6:] {
			if tag == "-" {
				break
			}
			e.propagates = e.propagates || strings.HasPrefix(tag, "shared:") || strings.HasPrefix(tag, "master:")
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// unescape undoes \040 and the like.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
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
