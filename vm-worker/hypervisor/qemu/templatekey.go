// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"bulkhead/vm-worker/hypervisor"

	"golang.org/x/sys/unix"
)

// templateFormat is counted up when this driver handles templates in another way. Processor and kernel of the
// host are no part of a key: a template lives no longer than the worker that made it.
const templateFormat = 1

// firmware are the files that QEMU loads into its machine, and where it looks for them.
var (
	firmware     = []string{"bios-256k.bin", "kvmvapic.bin", "linuxboot_dma.bin", "pvh.bin"}
	firmwareDirs = []string{"/usr/share/qemu", "/usr/share/seabios", "/usr/local/share/qemu"}
)

// TemplateKey implements hypervisor.Templater.
func (d *Driver) TemplateKey(ctx context.Context, s hypervisor.Spec) (string, error) {
	binary, err := d.binary.find(ctx)
	if err != nil {
		return "", err
	}
	imageBytes, err := checkGuest(s)
	if err != nil {
		return "", err
	}
	// What is the VM's own, and what may differ between the VMs of one template.
	s.ID, s.Mergeable = "", false
	key := sha256.New()
	fmt.Fprintf(key, "%d %s\n%s\n", templateFormat, Name, strings.Join(args(binary, s, imageBytes, ramShared), "\n"))
	for _, file := range d.templateFiles(s, binary) {
		digest, err := contents.digest(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // firmware, or a library, that is in another directory
		}
		if err != nil {
			return "", err
		}
		fmt.Fprintf(key, "%s %x\n", file, digest)
	}
	return hex.EncodeToString(key.Sum(nil)), nil
}

// TemplateFiles implements hypervisor.Templater.
func (d *Driver) TemplateFiles(ctx context.Context, s hypervisor.Spec) ([]string, error) {
	binary, err := d.binary.find(ctx)
	if err != nil {
		return nil, err
	}
	return d.templateFiles(s, binary), nil
}

func (d *Driver) templateFiles(s hypervisor.Spec, binary string) []string {
	files := []string{s.Kernel, s.Image, binary}
	if library := d.preload.find(d.binary.release(), d.log); library != "" {
		files = append(files, library)
	}
	if s.Accelerator == hypervisor.TCG {
		files = append(files, d.zygotes.places()...) // it makes the jails of the VMs that are forked; one may come where none was
	}
	for _, dir := range firmwareDirs {
		for _, name := range firmware {
			files = append(files, filepath.Join(dir, name))
		}
	}
	return files
}

// contents remembers what files hold.
var contents fileContents

// fileContents knows the digests of files, and reads one again when it is another or was changed.
type fileContents struct {
	mu    sync.Mutex
	known map[fileState][sha256.Size]byte // guarded by mu
}

// fileState changes with the contents of a file: nobody can set ctime.
type fileState struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

// maxKnownFiles bounds what is remembered; updates of the files add to it.
const maxKnownFiles = 4096

func (c *fileContents) digest(path string) (sum [sha256.Size]byte, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return sum, fmt.Errorf("reading %s: %w", path, err)
	}
	state := fileState{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}
	c.mu.Lock()
	defer c.mu.Unlock()
	if sum, ok := c.known[state]; ok {
		return sum, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return sum, fmt.Errorf("reading %s: %w", path, err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return sum, fmt.Errorf("reading %s: %w", path, err)
	}
	h.Sum(sum[:0])
	if c.known == nil || len(c.known) >= maxKnownFiles {
		c.known = map[fileState][sha256.Size]byte{}
	}
	c.known[state] = sum
	return sum, nil
}
