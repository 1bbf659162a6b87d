// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// attributes are checks of what is known about files.
var attributes = []check{
	{"mode-and-owner", modeAndOwner},
	{"setuid-ends-with-write", setuidEnds},
	{"setgid-directory", setgidDirectory},
	{"owner-is-the-user", ownerIsTheUser},
	{"read-only-file-of-user", readOnlyFile},
	{"times", times},
	{"mtime-after-write", mtimeAfterWrite},
	{"user-attributes", func(dir string) error { return attribute(dir, "user.test") }},
	{"trusted-attributes", func(dir string) error { return attribute(dir, "trusted.test") }},
	{"file-capabilities", fileCapabilities},
	{"access-control-list", accessControlList},
	{"inode-numbers", inodeNumbers},
	{"statfs", statfs},
}

func modeAndOwner(dir string) error {
	f, err := create(dir, "f", "")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := errors.Join(f.Chown(1234, 4321), f.Chmod(0o640|os.ModeSetuid)); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(f.Name(), &st); err != nil {
		return err
	}
	if st.Uid != 1234 || st.Gid != 4321 || st.Mode&0o7777 != 0o4640 {
		return fmt.Errorf("%d:%d %o", st.Uid, st.Gid, st.Mode)
	}
	return nil
}

// asUser runs a shell command as user and group 1000.
func asUser(dir, command string) error {
	cmd := exec.Command("/bin/sh", "-c", command)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", command, err, bytes.TrimSpace(out))
	}
	return nil
}

func setuidEnds(dir string) error {
	f, err := create(dir, "f", "")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := errors.Join(f.Chown(1000, 1000), f.Chmod(0o755|os.ModeSetuid)); err != nil {
		return err
	}
	if err := asUser(dir, "echo more >> f"); err != nil {
		return err
	}
	if info, err := os.Stat(f.Name()); err != nil || info.Mode()&os.ModeSetuid != 0 {
		return found(err, "after a write of its owner the mode is %v", info.Mode())
	}
	return nil
}

func setgidDirectory(dir string) error {
	if err := errors.Join(os.Chown(dir, 0, 4321), os.Chmod(dir, 0o777|os.ModeSetgid)); err != nil {
		return err
	}
	if err := asUser(dir, "echo > f; mkdir d"); err != nil {
		return err
	}
	for _, name := range []string{"f", "d"} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, name), &st); err != nil {
			return err
		}
		if st.Uid != 1000 || st.Gid != 4321 || name == "d" && st.Mode&unix.S_ISGID == 0 {
			return fmt.Errorf("%s is of %d:%d with mode %o", name, st.Uid, st.Gid, st.Mode)
		}
	}
	return nil
}

func ownerIsTheUser(dir string) error {
	if err := os.Chmod(dir, 0o777); err != nil {
		return err
	}
	if err := asUser(dir, "echo > f; mkdir d; ln -s f l; mkfifo p"); err != nil {
		return err
	}
	for _, name := range []string{"f", "d", "l", "p"} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, name), &st); err != nil {
			return err
		}
		if st.Uid != 1000 || st.Gid != 1000 {
			return fmt.Errorf("%s is of %d:%d", name, st.Uid, st.Gid)
		}
	}
	return os.Chmod(dir, 0o755)
}

// readOnlyFile: git writes its objects into files that it makes read-only.
func readOnlyFile(dir string) error {
	if err := os.Chmod(dir, 0o777); err != nil {
		return err
	}
	if err := asUser(dir, "umask 0277; echo object > f; cat f; if echo x > f; then exit 1; fi 2>/dev/null; mv f g; rm -f g"); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, "h"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString("object")
	return err
}

func times(dir string) error {
	f, err := create(dir, "f", "")
	if err != nil {
		return err
	}
	defer f.Close()
	want := time.Unix(981173106, 123456789)
	if err := os.Chtimes(f.Name(), want, want); err != nil {
		return err
	}
	if info, err := os.Stat(f.Name()); err != nil || !info.ModTime().Equal(want) {
		return found(err, "the time is %v", info.ModTime())
	}
	return nil
}

// mtimeAfterWrite: make(1) compares the times of files with each other.
func mtimeAfterWrite(dir string) error {
	f, err := create(dir, "f", "x")
	if err != nil {
		return err
	}
	defer f.Close()
	past := time.Unix(981173106, 0)
	if err := os.Chtimes(f.Name(), past, past); err != nil {
		return err
	}
	if _, err := f.WriteString("y"); err != nil {
		return err
	}
	if info, err := f.Stat(); err != nil || time.Since(info.ModTime()).Abs() > time.Minute {
		return found(err, "after a write the time is %v", info.ModTime())
	}
	return nil
}

func attribute(dir, name string) error {
	f, err := create(dir, "f", "")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fsetxattr(int(f.Fd()), name, []byte("value"), 0); err != nil {
		return err
	}
	buf := make([]byte, 64)
	if n, err := unix.Getxattr(f.Name(), name, buf); err != nil || string(buf[:n]) != "value" {
		return found(err, "it is %q", buf[:max(n, 0)])
	}
	if n, err := unix.Listxattr(f.Name(), buf); err != nil || n == 0 {
		return found(err, "the list is %q", buf[:max(n, 0)])
	}
	return unix.Removexattr(f.Name(), name)
}

func fileCapabilities(dir string) error {
	f, err := create(dir, "f", "")
	if err != nil {
		return err
	}
	defer f.Close()
	capability := make([]byte, 20) // capabilities(7), VFS_CAP_REVISION_2
	binary.LittleEndian.PutUint32(capability, 0x02000001)
	binary.LittleEndian.PutUint32(capability[4:], 1<<unix.CAP_NET_BIND_SERVICE)
	return unix.Setxattr(f.Name(), "security.capability", capability, 0)
}

func accessControlList(dir string) error {
	f, err := create(dir, "f", "")
	if err != nil {
		return err
	}
	defer f.Close()
	acl := binary.LittleEndian.AppendUint32(nil, 2) // acl(5) as the kernel has it: version, then tag, permissions, id
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 6, ^uint32(0)}, {2, 4, 1000}, {4, 4, ^uint32(0)}, {16, 6, ^uint32(0)}, {32, 0, ^uint32(0)}} {
		acl = binary.LittleEndian.AppendUint16(acl, e.tag)
		acl = binary.LittleEndian.AppendUint16(acl, e.perm)
		acl = binary.LittleEndian.AppendUint32(acl, e.id)
	}
	if err := f.Close(); err != nil { // an open file's mode is remembered
		return err
	}
	if err := unix.Setxattr(f.Name(), "system.posix_acl_access", acl, 0); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	return asUser(dir, "cat f")
}

func inodeNumbers(dir string) error {
	seen := map[uint64]string{}
	for i := range 20 {
		f, err := create(dir, fmt.Sprint(i), "")
		if err != nil {
			return err
		}
		f.Close()
		var a, b unix.Stat_t
		if err := errors.Join(unix.Stat(f.Name(), &a), unix.Stat(f.Name(), &b)); err != nil {
			return err
		}
		if a.Ino != b.Ino {
			return fmt.Errorf("the number changes from %d to %d", a.Ino, b.Ino)
		}
		if other, taken := seen[a.Ino]; taken {
			return fmt.Errorf("%s and %s have the same", other, f.Name())
		}
		seen[a.Ino] = f.Name()
	}
	return nil
}

func statfs(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err
	}
	if st.Blocks == 0 || st.Bsize == 0 || st.Namelen < 255 {
		return fmt.Errorf("%+v", st)
	}
	return nil
}
