// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

const page = 4096

// contents are checks of what is in files.
var contents = []check{
	{"shared-mapping", sharedMapping},
	{"shared-mapping-of-two", sharedMappingOfTwo},
	{"write-through-mapping", writeThroughMapping},
	{"write-beside-mapping", writeBesideMapping},
	{"mapping-made-writable", mappingMadeWritable},
	{"mapping-of-a-replaced-file", mappingOfAReplacedFile},
	{"mapping-past-truncation", mappingPastTruncation},
	{"program-runs", programRuns},
	{"direct-io", directIO},
	{"fallocate", func(dir string) error { return allocate(dir, 0) }},
	{"fallocate-keep-size", func(dir string) error { return allocate(dir, unix.FALLOC_FL_KEEP_SIZE) }},
	{"punch-hole", func(dir string) error { return allocate(dir, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE) }},
	{"sparse-beyond-4GiB", sparse},
	{"append-by-two", appendByTwo},
	{"copy-file-range", copyFileRange},
	{"sync-file-and-directory", syncAll},
	{"pipe-to-file-and-back", splicing},
}

func create(dir, name, text string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteString(text); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func holds(path, want string) error {
	got, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if string(got) != want {
		return fmt.Errorf("the file holds %.40q (%d bytes), not %.40q (%d bytes)", got, len(got), want, len(want))
	}
	return nil
}

// mappingOfAReplacedFile: what a program changes in a file that another one has
// replaced meanwhile must not turn up in the new file.
func mappingOfAReplacedFile(dir string) error {
	f, err := create(dir, "f", "old")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	replacement, err := create(dir, "f", "new")
	if err != nil {
		return err
	}
	defer replacement.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(m, "OLD")
	if err := errors.Join(unix.Msync(m, unix.MS_SYNC), unix.Munmap(m)); err != nil {
		return err
	}
	got := make([]byte, 3)
	if _, err := f.ReadAt(got, 0); err != nil || string(got) != "OLD" {
		return found(err, "the replaced file holds %q", got)
	}
	return holds(replacement.Name(), "new")
}

// sharedMapping is how most databases write.
func sharedMapping(dir string) error {
	f, err := create(dir, "f", "")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(4 * page); err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 4*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(m[2*page:], "written by memory")
	if err := unix.Msync(m, unix.MS_SYNC); err != nil {
		return err
	}
	got := make([]byte, 17)
	if _, err := f.ReadAt(got, 2*page); err != nil || string(got) != "written by memory" {
		return found(err, "after msync the file reads %q", got)
	}
	copy(m, "without msync")
	if err := unix.Munmap(m); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	text, err := os.ReadFile(f.Name())
	if err == nil && !bytes.HasPrefix(text, []byte("without msync")) {
		err = fmt.Errorf("after munmap and close the file begins with %q", text[:13])
	}
	return err
}

// sharedMappingOfTwo is SQLite's write-ahead log: two openers of a file share its memory.
func sharedMappingOfTwo(dir string) error {
	f, err := create(dir, "f", string(make([]byte, page)))
	if err != nil {
		return err
	}
	defer f.Close()
	g, err := os.OpenFile(f.Name(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer g.Close()
	var m [2][]byte
	for i, file := range []*os.File{f, g} {
		if m[i], err = unix.Mmap(int(file.Fd()), 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
			return err
		}
	}
	m[0][7] = 'x'
	if m[1][7] != 'x' {
		return fmt.Errorf("what one mapping wrote, the other does not see")
	}
	return nil
}

// writeThroughMapping: write(2) and a mapping of the same file agree.
func writeThroughMapping(dir string) error {
	f, err := create(dir, "f", string(make([]byte, page)))
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	_ = m[0] // is in memory now
	if _, err := f.WriteAt([]byte("by write"), 0); err != nil {
		return err
	}
	if string(m[:8]) != "by write" {
		return fmt.Errorf("the mapping does not see what write(2) wrote: %q", m[:8])
	}
	copy(m[100:], "by memory")
	got := make([]byte, 9)
	if _, err := f.ReadAt(got, 100); err != nil || string(got) != "by memory" {
		return found(err, "read(2) does not see what the mapping wrote: %q", got)
	}
	return nil
}

// writeBesideMapping: what write(2) writes is not undone when a page that a
// mapping has changed is written back later.
func writeBesideMapping(dir string) error {
	f, err := create(dir, "f", string(make([]byte, page)))
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(m[100:], "by memory")
	if _, err := f.WriteAt([]byte("by write"), 0); err != nil {
		return err
	}
	if err := errors.Join(unix.Msync(m, unix.MS_SYNC), unix.Munmap(m)); err != nil {
		return err
	}
	got := make([]byte, 109)
	if _, err := f.ReadAt(got, 0); err != nil || string(got[:8]) != "by write" || string(got[100:]) != "by memory" {
		return found(err, "the file reads %q and %q", got[:8], got[100:])
	}
	return nil
}

// mappingMadeWritable is what linkers and garbage collectors do.
func mappingMadeWritable(dir string) error {
	f, err := create(dir, "f", string(make([]byte, page)))
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, page, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	if err := unix.Mprotect(m, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return err
	}
	copy(m, "written")
	if err := unix.Munmap(m); err != nil {
		return err
	}
	got := make([]byte, 7)
	if _, err := f.ReadAt(got, 0); err != nil || string(got) != "written" {
		return found(err, "the file reads %q", got)
	}
	return nil
}

func mappingPastTruncation(dir string) error {
	f, err := create(dir, "f", "")
	if err != nil {
		return err
	}
	defer f.Close()
	for _, size := range []int64{page, 8 * page, page} {
		if err := f.Truncate(size); err != nil {
			return err
		}
		m, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		m[size-1] = 'e'
		if err := unix.Munmap(m); err != nil {
			return err
		}
	}
	if info, err := os.Stat(f.Name()); err != nil || info.Size() != page {
		return found(err, "the size is %v", info)
	}
	return nil
}

// programRuns: a program that has just been written runs, as in a build.
func programRuns(dir string) error {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "program")
	if err := os.WriteFile(path, self, 0o755); err != nil {
		return err
	}
	out, err := exec.Command(path).CombinedOutput()
	if want := "usage:"; !bytes.HasPrefix(out, []byte(want)) {
		return found(err, "it says %q", out)
	}
	return nil
}

func directIO(dir string) error {
	path := filepath.Join(dir, "f")
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_DIRECT|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	raw := make([]byte, 2*page)
	aligned := raw[page-int(uintptr(unsafe.Pointer(&raw[0]))%page):][:page]
	for i := range aligned {
		aligned[i] = byte('a' + i%26)
	}
	want := string(aligned)
	if n, err := unix.Pwrite(fd, aligned, page); n != page {
		return found(err, "writing: %d", n)
	}
	clear(aligned)
	if n, err := unix.Pread(fd, aligned, page); n != page || string(aligned) != want {
		return found(err, "reading: %d", n)
	}
	return holds(path, string(make([]byte, page))+want)
}

func allocate(dir string, mode uint32) error {
	f, err := create(dir, "f", string(bytes.Repeat([]byte("x"), 3*page)))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), mode, page, 8*page); err != nil {
		return err
	}
	want := int64(9 * page)
	if mode&unix.FALLOC_FL_KEEP_SIZE != 0 {
		want = 3 * page
	}
	if info, err := f.Stat(); err != nil || info.Size() != want {
		return found(err, "the size is %d", info.Size())
	}
	return nil
}

func sparse(dir string) error {
	f, err := create(dir, "f", "")
	if err != nil {
		return err
	}
	defer f.Close()
	const far = 5 << 30
	if _, err := f.WriteAt([]byte("end"), far); err != nil {
		return err
	}
	got := make([]byte, 3)
	if _, err := f.ReadAt(got, far); err != nil || string(got) != "end" {
		return found(err, "read %q", got)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Size != far+3 || st.Blocks*512 > 1<<20 {
		return fmt.Errorf("%d bytes in %d blocks", st.Size, st.Blocks)
	}
	return nil
}

func appendByTwo(dir string) error {
	path := filepath.Join(dir, "log")
	var files [2]*os.File
	for i := range files {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		files[i] = f
	}
	want := ""
	for i := range 20 {
		line := fmt.Sprintf("line %d\n", i)
		if _, err := files[i%2].WriteString(line); err != nil {
			return err
		}
		want += line
	}
	return holds(path, want)
}

func copyFileRange(dir string) error {
	in, err := create(dir, "in", "what is copied")
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := create(dir, "out", "")
	if err != nil {
		return err
	}
	defer out.Close()
	from := int64(5)
	if n, err := unix.CopyFileRange(int(in.Fd()), &from, int(out.Fd()), nil, 9, 0); n != 9 {
		return found(err, "copied %d", n)
	}
	return holds(out.Name(), "is copied")
}

func syncAll(dir string) error {
	f, err := create(dir, "f", "text")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return err
	}
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return fmt.Errorf("fdatasync: %w", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return err
	}
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("syncfs: %w", err)
	}
	return nil
}

func splicing(dir string) error {
	f, err := create(dir, "f", "through a pipe")
	if err != nil {
		return err
	}
	defer f.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	defer w.Close()
	at := int64(0)
	if n, err := unix.Splice(int(f.Fd()), &at, int(w.Fd()), nil, 14, 0); n != 14 {
		return found(err, "into a pipe: %d", n)
	}
	g, err := create(dir, "g", "")
	if err != nil {
		return err
	}
	defer g.Close()
	if n, err := unix.Splice(int(r.Fd()), nil, int(g.Fd()), nil, 14, 0); n != 14 {
		return found(err, "out of a pipe: %d", n)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if n, err := unix.Sendfile(int(g.Fd()), int(f.Fd()), nil, 14); n != 14 {
		return found(err, "sendfile: %d", n)
	}
	return holds(g.Name(), "through a pipethrough a pipe")
}
