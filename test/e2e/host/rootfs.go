// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package host

import (
	"archive/tar"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// busybox is Debian's static one (package busybox-static).
const busybox = "/bin/busybox"

// applets are the commands of the root file system.
const applets = "ash awk basename cat chmod chown cp cut date dd df dirname echo env expr false find grep head hostname id ip kill ln ls md5sum mkdir mkfifo " +
	"mknod mount mv nc nproc nslookup od ping ping6 printf ps pwd readlink rm rmdir seq sed sh sha256sum sleep sort stat stty sync tail tee test timeout top touch tr " +
	"true tty umount uname uniq uptime usleep vi wc whoami xargs yes"

var rootDirs = []string{"bin", "dev", "etc", "home", "home/app", "mnt", "proc", "root", "run", "sys", "tmp", "usr", "var", "var/tmp"}

var rootFiles = map[string]string{
	"etc/passwd":       "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\napp:x:1000:1000:app:/home/app:/bin/sh\n",
	"etc/group":        "root:x:0:\ndaemon:x:1:\napp:x:1000:\nextra:x:2000:app\n",
	"etc/not-a-script": "no program\n",
}

// Rootfs makes a root file system of busybox in a directory.
func Rootfs(dir string) error {
	for _, name := range rootDirs {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(dir, "tmp"), 0o777|os.ModeSticky); err != nil {
		return err
	}
	for name, text := range rootFiles {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := copyFile(busybox, filepath.Join(dir, "bin/busybox"), 0o755); err != nil {
		return fmt.Errorf("busybox is missing; install the Debian package busybox-static: %w", err)
	}
	for _, name := range strings.Fields(applets) {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
			return err
		}
	}
	return nil
}

// RootfsTar writes the same root file system as an archive.
func RootfsTar(w io.Writer) error {
	program, err := os.ReadFile(busybox)
	if err != nil {
		return fmt.Errorf("busybox is missing; install the Debian package busybox-static: %w", err)
	}
	archive := tar.NewWriter(w)
	add := func(h tar.Header, body []byte) {
		h.Size = int64(len(body))
		if err == nil {
			err = archive.WriteHeader(&h)
		}
		if err == nil {
			_, err = archive.Write(body)
		}
	}
	for _, name := range rootDirs {
		mode := int64(0o755)
		if path.Base(name) == "tmp" {
			mode = 0o1777
		}
		add(tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: mode}, nil)
	}
	for name, text := range rootFiles {
		add(tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, []byte(text))
	}
	add(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, program)
	for _, name := range strings.Fields(applets) {
		add(tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
	}
	if err != nil {
		return err
	}
	return archive.Close()
}
