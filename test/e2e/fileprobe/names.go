// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// names are checks of directories and of what files are called.
var names = []check{
	{"unlinked-open", unlinkedOpen},
	{"unlinked-grows", unlinkedGrows},
	{"unlinked-shrinks", unlinkedShrinks},
	{"unlinked-attributes", unlinkedAttributes},
	{"unlinked-reopen", unlinkedReopen},
	{"unlinked-mapping", unlinkedMapping},
	{"nameless-file", namelessFile},
	{"nameless-file-gets-name", namelessFileGetsName},
	{"rename-over-open", renameOverOpen},
	{"rename-open-then-use", renameOpenThenUse},
	{"rename-directory-in-use", renameDirectoryInUse},
	{"rename-noreplace", renameNoReplace},
	{"rename-exchange", renameExchange},
	{"removed-directory", removedDirectory},
	{"hard-link", hardLink},
	{"symbolic-link", symbolicLink},
	{"big-directory", bigDirectory},
	{"directory-emptied-while-read", emptiedWhileRead},
	{"long-name", longName},
	{"unix-socket", unixSocket},
	{"named-pipe", namedPipe},
	{"inotify", watching},
	{"file-handle", fileHandle},
	{"case-and-bytes", caseAndBytes},
}

// unlinkedOpen: temporary files are removed while they are used.
func unlinkedOpen(dir string) error {
	f, err := create(dir, "f", "before")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	if _, err := f.WriteString(" after"); err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	got := make([]byte, 12)
	if _, err := f.ReadAt(got, 0); err != nil || string(got) != "before after" {
		return found(err, "reading: %q", got)
	}
	if info, err := f.Stat(); err != nil {
		return fmt.Errorf("fstat: %w", err)
	} else if info.Size() != 12 {
		return fmt.Errorf("fstat says %d bytes", info.Size())
	}
	return f.Sync()
}

// unlinkedGrows is shared memory made of a temporary file, as browsers do where /dev/shm is small.
func unlinkedGrows(dir string) error {
	f, err := create(dir, "f", "")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	if err := f.Truncate(2 * page); err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	m[2*page-1] = 'x'
	return unix.Munmap(m)
}

func unlinkedShrinks(dir string) error {
	f, err := create(dir, "f", "text")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	return f.Truncate(1)
}

func unlinkedAttributes(dir string) error {
	f, err := create(dir, "f", "text")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("fstat: %w", err)
	}
	if st.Nlink != 0 {
		return fmt.Errorf("it has %d links", st.Nlink)
	}
	if err := f.Chmod(0o600); err != nil {
		return fmt.Errorf("fchmod: %w", err)
	}
	if err := f.Chown(0, 0); err != nil {
		return fmt.Errorf("fchown: %w", err)
	}
	if err := unix.Futimes(int(f.Fd()), []unix.Timeval{{Sec: 1}, {Sec: 2}}); err != nil {
		return fmt.Errorf("futimens: %w", err)
	}
	return nil
}

func unlinkedReopen(dir string) error {
	f, err := create(dir, "f", "text")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	return holds(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), "text")
}

func unlinkedMapping(dir string) error {
	f, err := create(dir, "f", string(make([]byte, page)))
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	copy(m, "still here")
	if err := unix.Msync(m, unix.MS_SYNC); err != nil {
		return fmt.Errorf("msync: %w", err)
	}
	got := make([]byte, 10)
	if _, err := f.ReadAt(got, 0); err != nil || string(got) != "still here" {
		return found(err, "the file reads %q", got)
	}
	return nil
}

func namelessFile(dir string) error {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func namelessFileGetsName(dir string) error {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte("whole")); err != nil {
		return err
	}
	name := filepath.Join(dir, "named")
	if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW); err != nil {
		return fmt.Errorf("linkat: %w", err)
	}
	return holds(name, "whole")
}

// renameOverOpen is how configuration files and packages are replaced.
func renameOverOpen(dir string) error {
	old, err := create(dir, "f", "old")
	if err != nil {
		return err
	}
	defer old.Close()
	fresh, err := create(dir, "f.new", "new")
	if err != nil {
		return err
	}
	defer fresh.Close()
	if err := os.Rename(fresh.Name(), old.Name()); err != nil {
		return err
	}
	got := make([]byte, 3)
	if _, err := old.ReadAt(got, 0); err != nil || string(got) != "old" {
		return found(err, "the open file reads %q", got)
	}
	if info, err := old.Stat(); err != nil {
		return fmt.Errorf("fstat of the replaced file: %w", err)
	} else if other, err := os.Stat(old.Name()); err != nil || os.SameFile(info, other) {
		return found(err, "the replaced file and the new one are the same")
	}
	return holds(old.Name(), "new")
}

func renameOpenThenUse(dir string) error {
	f, err := create(dir, "f", "text")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Rename(f.Name(), f.Name()+".moved"); err != nil {
		return err
	}
	if err := f.Chmod(0o600); err != nil {
		return fmt.Errorf("fchmod: %w", err)
	}
	if _, err := f.WriteString(" more"); err != nil {
		return err
	}
	if info, err := os.Stat(f.Name() + ".moved"); err != nil || info.Mode() != 0o600 {
		return found(err, "it is %v", info)
	}
	return holds(f.Name()+".moved", "text more")
}

func renameDirectoryInUse(dir string) error {
	old := filepath.Join(dir, "a")
	if err := os.MkdirAll(filepath.Join(old, "b"), 0o755); err != nil {
		return err
	}
	d, err := os.Open(filepath.Join(old, "b"))
	if err != nil {
		return err
	}
	defer d.Close()
	if err := os.Rename(old, filepath.Join(dir, "moved")); err != nil {
		return err
	}
	fd, err := unix.Openat(int(d.Fd()), "f", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return fmt.Errorf("openat in the moved directory: %w", err)
	}
	defer unix.Close(fd)
	_, err = os.Stat(filepath.Join(dir, "moved/b/f"))
	return err
}

func renameNoReplace(dir string) error {
	for _, name := range []string{"a", "b"} {
		f, err := create(dir, name, name)
		if err != nil {
			return err
		}
		f.Close()
	}
	a, b, c := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "c")
	if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_NOREPLACE); !errors.Is(err, unix.EEXIST) {
		return found(err, "onto what exists")
	}
	if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, c, unix.RENAME_NOREPLACE); err != nil {
		return err
	}
	return holds(c, "a")
}

func renameExchange(dir string) error {
	for _, name := range []string{"a", "b"} {
		f, err := create(dir, name, name)
		if err != nil {
			return err
		}
		f.Close()
	}
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil {
		return err
	}
	return holds(a, "b")
}

func removedDirectory(dir string) error {
	path := filepath.Join(dir, "d")
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := os.Remove(path); err != nil {
		return err
	}
	if _, err := unix.Openat(int(d.Fd()), "f", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644); !errors.Is(err, unix.ENOENT) {
		return found(err, "making a file in it")
	}
	if _, err := d.Stat(); err != nil {
		return fmt.Errorf("fstat: %w", err)
	}
	return nil
}

func hardLink(dir string) error {
	f, err := create(dir, "a", "one")
	if err != nil {
		return err
	}
	defer f.Close()
	b := filepath.Join(dir, "b")
	if err := os.Link(f.Name(), b); err != nil {
		return err
	}
	if _, err := f.WriteString(" two"); err != nil {
		return err
	}
	if err := holds(b, "one two"); err != nil {
		return err
	}
	var x, y unix.Stat_t
	if err := errors.Join(unix.Stat(f.Name(), &x), unix.Stat(b, &y)); err != nil {
		return err
	}
	if x.Ino != y.Ino || x.Dev != y.Dev || x.Nlink != 2 || y.Nlink != 2 {
		return fmt.Errorf("inodes %d and %d, links %d and %d", x.Ino, y.Ino, x.Nlink, y.Nlink)
	}
	return nil
}

func symbolicLink(dir string) error {
	target := strings.Repeat("x/", 1000)
	link := filepath.Join(dir, "l")
	if err := os.Symlink(target, link); err != nil {
		return err
	}
	if got, err := os.Readlink(link); err != nil || got != target {
		return found(err, "it leads to %.20q", got)
	}
	if err := os.Lchown(link, 1000, 1000); err != nil {
		return fmt.Errorf("lchown: %w", err)
	}
	return nil
}

func bigDirectory(dir string) error {
	const count = 300
	for i := range count {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file-with-a-longer-name-%d", i)), nil, 0o644); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) != count {
		return fmt.Errorf("%d entries of %d", len(entries), count)
	}
	return nil
}

// emptiedWhileRead is rm -r: the directory changes between two readings of its entries.
func emptiedWhileRead(dir string) error {
	const count = 150
	for i := range count {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("file-", i)), nil, 0o644); err != nil {
			return err
		}
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	removed := 0
	for {
		list, err := d.Readdirnames(10)
		for _, name := range list {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				return err
			}
			removed++
		}
		if err != nil {
			break
		}
	}
	if removed != count {
		return fmt.Errorf("%d of %d entries were found", removed, count)
	}
	return nil
}

func longName(dir string) error {
	f, err := create(dir, strings.Repeat("n", 255), "")
	if err != nil {
		return err
	}
	f.Close()
	if _, err := create(dir, strings.Repeat("n", 256), ""); !errors.Is(err, unix.ENAMETOOLONG) {
		return found(err, "a name of 256 bytes")
	}
	return nil
}

func unixSocket(dir string) error {
	// A path below 108 bytes, wherever dir is.
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	path := fmt.Sprintf("/proc/self/fd/%d/s", d.Fd())
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	defer l.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	return c.Close()
}

func namedPipe(dir string) error {
	path := filepath.Join(dir, "p")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString("x"); err != nil {
		return err
	}
	_, err = f.Read(make([]byte, 1))
	return err
}

func watching(dir string) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := os.WriteFile(filepath.Join(dir, "watched"), nil, 0o644); err != nil {
		return err
	}
	for _, w := range []struct {
		path string
		mask uint32
	}{{dir, unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_DELETE}, {filepath.Join(dir, "watched"), unix.IN_MODIFY | unix.IN_ATTRIB}} {
		if _, err := unix.InotifyAddWatch(fd, w.path, w.mask); err != nil {
			return err
		}
	}
	for _, change := range []struct {
		name string
		do   func() error
	}{
		{"a new file", func() error { return os.WriteFile(filepath.Join(dir, "f"), nil, 0o644) }},
		{"a new directory", func() error { return os.Mkdir(filepath.Join(dir, "d"), 0o755) }},
		{"a new name", func() error { return os.Rename(filepath.Join(dir, "f"), filepath.Join(dir, "g")) }},
		{"a removal", func() error { return os.Remove(filepath.Join(dir, "g")) }},
		{"a write", func() error { return os.WriteFile(filepath.Join(dir, "watched"), []byte("x"), 0o644) }},
		{"another mode", func() error { return os.Chmod(filepath.Join(dir, "watched"), 0o600) }},
	} {
		if err := change.do(); err != nil {
			return err
		}
		if n, err := unix.Read(fd, make([]byte, 4096)); n <= 0 {
			return fmt.Errorf("%s is not told: %w", change.name, err)
		}
	}
	return nil
}

func fileHandle(dir string) error {
	_, _, err := unix.NameToHandleAt(unix.AT_FDCWD, dir, 0)
	return err
}

func caseAndBytes(dir string) error {
	for _, name := range []string{"a", "A", "\xff\xfe", " ", "é", "\n", `\`} {
		f, err := create(dir, name, "")
		if err != nil {
			return err
		}
		f.Close()
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 7 {
		return found(err, "%d entries", len(list))
	}
	if _, err := os.Stat(filepath.Join(dir, "b")); !errors.Is(err, fs.ErrNotExist) {
		return found(err, "a file nobody made")
	}
	return nil
}
