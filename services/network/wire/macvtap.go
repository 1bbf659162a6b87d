// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// makeMacvtap makes a macvtap on the link in mode passthru: it has the link's
// address and gets all that the link gets.
func (w *Wire) makeMacvtap() error {
	nl := w.NS.Netlink()
	l, err := nl.LinkByName(w.NIC.Device)
	if absent(err) {
		tap := &netlink.Macvtap{Macvlan: netlink.Macvlan{LinkAttrs: netlink.NewLinkAttrs(), Mode: netlink.MACVLAN_MODE_PASSTHRU}}
		tap.Name, tap.ParentIndex = w.NIC.Device, int(w.NIC.LinkIndex)
		tap.NumTxQueues, tap.NumRxQueues = int(w.NIC.Queues), int(w.NIC.Queues)
		if err := nl.LinkAdd(tap); err != nil {
			return fmt.Errorf("make a macvtap: %w", err)
		}
		l, err = nl.LinkByName(w.NIC.Device)
	}
	if err != nil {
		return err
	}
	if l.Attrs().Alias == "" && l.Type() == "macvtap" {
		if err := nl.LinkSetAlias(l, w.fullAlias()); err != nil {
			return fmt.Errorf("name the macvtap's owner: %w", err)
		}
	}
	_, err = w.device()
	return err
}

// openMacvtap opens queues of the macvtap. Its device node is not where anybody
// put one for a foreign namespace: the number is in that namespace's sysfs, and
// the node is made in a file system that only this call sees.
func (w *Wire) openMacvtap(queues int) ([]*os.File, error) {
	l, err := w.device()
	if err != nil {
		return nil, err
	}
	number, err := w.macvtapNumber(l)
	if err != nil {
		return nil, err
	}
	dir, name, err := nodeOf(number, l.Attrs().Index)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	return several(queues, func() (*os.File, error) {
		f, err := openQueue(dir, name, number)
		if err != nil {
			return nil, fmt.Errorf("open macvtap %s: %w", w.NIC.Device, err)
		}
		return f, nil
	})
}

func openQueue(dir int, name string, number uint64) (*os.File, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "macvtap")
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Rdev != number {
		f.Close()
		return nil, errors.Join(err, errors.New("the node is another device's"))
	}
	request, err := unix.NewIfreq("")
	if err != nil {
		f.Close()
		return nil, err
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_MULTI_QUEUE)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// macvtapNumber reads the device number from the sysfs of the namespace, mounted
// nowhere.
func (w *Wire) macvtapNumber(l netlink.Link) (uint64, error) {
	var text []byte
	err := w.NS.Do(func() error {
		sysfs, err := detached("sysfs")
		if err != nil {
			return err
		}
		defer unix.Close(sysfs)
		path := fmt.Sprintf("class/net/%s/tap%d/dev", l.Attrs().Name, l.Attrs().Index)
		fd, err := unix.Openat(sysfs, path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		text = make([]byte, 32)
		n, err := unix.Read(fd, text)
		if err != nil {
			return err
		}
		text = text[:n]
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("read the device number of macvtap %s: %w", w.NIC.Device, err)
	}
	major, minor, _ := strings.Cut(strings.TrimSpace(string(text)), ":")
	a, errA := strconv.ParseUint(major, 10, 32)
	b, errB := strconv.ParseUint(minor, 10, 32)
	if err := errors.Join(errA, errB); err != nil {
		return 0, fmt.Errorf("read the device number of macvtap %s from %q: %w", w.NIC.Device, text, err)
	}
	return unix.Mkdev(uint32(a), uint32(b)), nil
}

// nodeOf gives a directory and the name of the device's node in it. devtmpfs has
// the right one unless two namespaces use the same index; without CAP_MKNOD
// there is no other.
func nodeOf(number uint64, index int) (dir int, name string, err error) {
	dir, err = detached("tmpfs")
	if err != nil {
		return -1, "", err
	}
	name = "tap"
	err = unix.Mknodat(dir, name, unix.S_IFCHR|0o600, int(number))
	if err == nil {
		return dir, name, nil
	}
	unix.Close(dir)
	name = fmt.Sprintf("tap%d", index)
	var st unix.Stat_t
	if statErr := unix.Stat("/dev/"+name, &st); statErr != nil || st.Rdev != number {
		return -1, "", fmt.Errorf("make a node for a macvtap: %w; that needs CAP_MKNOD, as /dev/%s is not this one's; or choose model tc", err, name)
	}
	dir, err = unix.Open("/dev", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return dir, name, err
}

// detached mounts a new file system of a type nowhere, and gives its root.
func detached(kind string) (int, error) {
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open a file system %s: %w", kind, err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("make a file system %s: %w", kind, err)
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("mount a file system %s: %w", kind, err)
	}
	return root, nil
}
