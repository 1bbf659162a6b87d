// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Program guest is PID 1 of the guests that the driver's tests boot: it mounts
// the share and obeys one-line commands on the port bulkhead.ctl, answering
// each with one line.
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	for _, m := range [][3]string{{"proc", "/proc", "proc"}, {"sysfs", "/sys", "sysfs"}, {"tmpfs", "/run", "tmpfs"}} {
		if err := syscall.Mount(m[0], m[1], m[2], 0, ""); err != nil {
			fmt.Printf("mounting %s: %v\n", m[1], err)
		}
	}
	uptime, _ := os.ReadFile("/proc/uptime")
	if line, _ := os.ReadFile("/proc/cmdline"); !strings.Contains(string(line), "test.noshare") {
		if err := mountShare(); err != nil {
			fmt.Printf("mounting the share: %v\n", err)
		}
	}
	ctl, port := open("bulkhead.ctl"), open("bulkhead.io")
	go echo(port)
	fmt.Fprintf(ctl, "ready %s\n", strings.Fields(string(uptime))[0])
	serve(ctl)
}

func mountShare() error {
	_ = os.MkdirAll("/run/share", 0o755)
	return syscall.Mount("share", "/run/share", "9p", 0, "trans=virtio,version=9p2000.L,msize=131072,cache=none")
}

// open finds the port by its name.
func open(name string) *os.File {
	for {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, n := range names {
			if b, _ := os.ReadFile(n); strings.TrimSpace(string(b)) == name {
				f, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(n)), os.O_RDWR, 0)
				if err == nil {
					return f
				}
				fmt.Println(err)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func echo(f *os.File) {
	buf := make([]byte, 4096)
	for {
		n, err := f.Read(buf)
		if err != nil && err != io.EOF {
			return
		}
		if n == 0 {
			time.Sleep(10 * time.Millisecond) // the host end is not connected
			continue
		}
		_, _ = f.Write(buf[:n])
	}
}

func serve(ctl *os.File) {
	for {
		line, err := bufio.NewReader(ctl).ReadString('\n')
		if err != nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		fmt.Fprintf(ctl, "%s\n", obey(strings.Fields(line)))
	}
}

// disk waits for the disk with a serial number to come, or to go, or writes text
// to its beginning, past the cache.
func disk(do, serial, text string) error {
	for range 1000 {
		names, _ := filepath.Glob("/sys/block/*/serial")
		found := ""
		for _, n := range names {
			if b, _ := os.ReadFile(n); strings.TrimSpace(string(b)) == serial {
				found = "/dev/" + filepath.Base(filepath.Dir(n))
			}
		}
		switch {
		case do == "gone" && found == "":
			return nil
		case do == "write" && found != "":
			f, err := os.OpenFile(found, os.O_RDWR|os.O_SYNC, 0)
			if err == nil {
				_, err = f.WriteString(text)
			}
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("waited for disk %s to %s", serial, do)
}

// use writes to so many MiB of memory and gives them back to the kernel.
func use(mib string) error {
	n, err := strconv.Atoi(mib)
	if err != nil {
		return err
	}
	b, err := syscall.Mmap(-1, 0, n<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return err
	}
	for i := 0; i < len(b); i += 4096 {
		b[i] = byte(i>>12) | 1
	}
	return syscall.Munmap(b)
}

// card waits for the network card with an address to come, and switches it on, or to go.
func card(do, mac string) error {
	for range 1000 {
		names, _ := filepath.Glob("/sys/class/net/*/address")
		found := ""
		for _, n := range names {
			if b, _ := os.ReadFile(n); strings.TrimSpace(string(b)) == mac {
				found = filepath.Dir(n)
			}
		}
		switch {
		case do == "gone" && found == "":
			return nil
		case do == "up" && found != "":
			return switchOn(filepath.Base(found))
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("waited for network card %s to %s", mac, do)
}

// switchOn sets IFF_UP (netdevice(7)).
func switchOn(name string) error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	var request struct {
		name  [syscall.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}
	copy(request.name[:], name)
	request.flags = syscall.IFF_UP
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return errno
	}
	return nil
}

// sysGetrandom is the number of getrandom(2) on x86-64, which package syscall lacks.
const sysGetrandom = 318

// awaitFork waits until the kernel has been told so many times that its machine is a clone (drivers/char/random.c, vmfork).
func awaitFork(times int) error {
	fd, err := syscall.Open("/dev/kmsg", syscall.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	buf := make([]byte, 8192) // a record each
	for range 1000 {
		n, err := syscall.Read(fd, buf)
		switch {
		case err == syscall.EAGAIN:
			time.Sleep(10 * time.Millisecond)
		case err != nil && err != syscall.EPIPE: // some were lost
			return err
		case n > 0 && strings.Contains(string(buf[:n]), "virtual machine fork"):
			if times--; times == 0 {
				return nil
			}
		}
	}
	return fmt.Errorf("the kernel was not told that its machine is a clone")
}

// rdrand and rdseed are the numbers of the processor's own generator.
func rdrand() uint64
func rdseed() uint64

func obey(words []string) string {
	arg := func(i int) string {
		if i < len(words) {
			return words[i]
		}
		return ""
	}
	var err error
	switch arg(0) {
	case "echo":
		return strings.Join(words[1:], " ")
	case "forked":
		err = awaitFork(len(words) - 1)
	case "random":
		var b [16]byte
		if _, _, errno := syscall.Syscall(sysGetrandom, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0); errno != 0 {
			return errno.Error()
		}
		return fmt.Sprintf("%x", b)
	case "rdrand":
		return fmt.Sprintf("%016x%016x", rdrand(), rdrand())
	case "rdseed":
		return fmt.Sprintf("%016x%016x", rdseed(), rdseed())
	case "fill": // in memory
		err = os.WriteFile("/run/fill", bytes.Repeat([]byte("not zero"), 8<<20), 0o600)
	case "empty":
		err = os.Remove("/run/fill")
	case "share":
		err = mountShare()
	case "read":
		b, err := os.ReadFile(arg(1))
		if err != nil {
			return err.Error()
		}
		return strings.ReplaceAll(strings.TrimSpace(string(b)), "\n", "|")
	case "list":
		entries, err := os.ReadDir(arg(1))
		if err != nil {
			return err.Error()
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return strings.Join(names, " ")
	case "card":
		err = card(arg(1), arg(2))
	case "disk":
		err = disk(arg(1), arg(2), arg(3))
	case "write":
		err = os.WriteFile(arg(1), []byte(arg(2)), 0o644)
	case "mkdir":
		err = os.Mkdir(arg(1), 0o755)
	case "chown":
		err = os.Chown(arg(1), 1234, 1234)
	case "chmod":
		err = syscall.Chmod(arg(1), 0o4751)
	case "mkfifo":
		err = syscall.Mkfifo(arg(1), 0o600)
	case "symlink":
		err = os.Symlink(arg(1), arg(2))
	case "setxattr":
		err = syscall.Setxattr(arg(1), arg(2), []byte(arg(3)), 0)
	case "use": // so many MiB of memory, all written, and let go
		err = use(arg(1))
	case "print":
		line := strings.Repeat("x", 99) + "\n"
		for range 4000 {
			_, _ = os.Stdout.WriteString(line)
		}
		fmt.Println("last line")
		// TCSBRK with 1 waits until the serial port has sent everything.
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, os.Stdout.Fd(), 0x5409, 1)
		if errno != 0 {
			err = errno
		}
	case "poweroff":
		err = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	case "reboot":
		err = syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
	case "panic":
		os.Exit(7)
	default:
		return "what is " + arg(0) + "?"
	}
	if err != nil {
		return err.Error()
	}
	return "ok"
}
