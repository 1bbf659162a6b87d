// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// kernelEnv names a guest kernel (virtio, ext4 and devtmpfs built
// in) for the tests that need a real virtio-serial port. Build with CGO_ENABLED=0:
// the test binary is the guest's init.
const kernelEnv = "BULKHEAD_TEST_KERNEL"

func TestMain(m *testing.M) {
	if os.Getpid() == 1 {
		guestMain()
	}
	os.Exit(m.Run())
}

// guestMain is PID 1 of the test's guest: it echoes messages, and answers
// "cpu" with the milliseconds of processor time it has used.
func guestMain() {
	syscall.Mount("sysfs", "/sys", "sysfs", 0, "")
	syscall.Mount("devtmpfs", "/dev", "devtmpfs", 0, "")
	names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	if len(names) == 0 {
		panic("no virtio port")
	}
	port, err := OpenPort("/dev/" + filepath.Base(filepath.Dir(names[0])))
	if err != nil {
		panic(err)
	}
	l := Listen(port)
	for {
		s, err := l.Accept(context.Background())
		if err != nil {
			panic(err)
		}
		for {
			m, err := s.Recv()
			if err != nil {
				break
			}
			if string(m) == "cpu" {
				var use syscall.Rusage
				syscall.Getrusage(syscall.RUSAGE_SELF, &use)
				m = []byte(strconv.FormatInt((use.Utime.Nano()+use.Stime.Nano())/1e6, 10))
			}
			if s.Send(m) != nil {
				break
			}
		}
	}
}

func TestVirtioSerialPortSurvivesItsHostAndDoesNotSpin(t *testing.T) {
	kernel := os.Getenv(kernelEnv)
	if kernel == "" {
		t.Skip("set " + kernelEnv + " to a guest kernel")
	}
	dir := t.TempDir()
	root := image(t, dir)
	socket := filepath.Join(dir, "io.sock")
	console := filepath.Join(dir, "console")
	qemu := exec.Command("qemu-system-x86_64", "-accel", "tcg,tb-size=32", "-M", "q35", "-cpu", "qemu64,+arat", "-m", "256", "-nodefaults", "-no-user-config",
		"-display", "none", "-serial", "file:"+console, "-no-reboot", "-kernel", kernel, "-append", "console=ttyS0 quiet panic=-1 root=/dev/vda ro init=/init",
		"-drive", "file="+root+",format=raw,if=none,id=root,readonly=on", "-device", "virtio-blk-pci,drive=root",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=io,path="+socket+",server=on,wait=off", "-device", "virtserialport,chardev=io,name=bulkhead.io")
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	defer qemu.Wait()
	defer qemu.Process.Kill()
	defer func() {
		if t.Failed() {
			text, _ := os.ReadFile(console)
			t.Logf("console:\n%s", text)
		}
	}()

	ctx := within(t, 60*time.Second)
	dial := func() *Session {
		t.Helper()
		var conn net.Conn
		for { // QEMU makes the socket some time after its start
			var err error
			if conn, err = net.Dial("unix", socket); err == nil {
				break
			}
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
				t.Fatal(err)
			}
		}
		s, err := Dial(ctx, conn)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	cpu := func(s *Session) int {
		t.Helper()
		if err := s.Send([]byte("cpu")); err != nil {
			t.Fatal(err)
		}
		m, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		ms, err := strconv.Atoi(string(m))
		if err != nil {
			t.Fatal(err)
		}
		return ms
	}

	s := dial()
	began := time.Now()
	for range 100 {
		exchange(t, s, []byte("x"))
	}
	t.Logf("round trip %v", time.Since(began)/100)
	began = time.Now()
	for range 100 {
		exchange(t, s, bytes.Repeat([]byte("y"), MaxMessage))
	}
	t.Logf("echo of full frames: %.1f MB/s each way", 100*float64(MaxMessage)/1e6/time.Since(began).Seconds())

	before := cpu(s)
	s.conn().Close() // as a worker that dies
	time.Sleep(3 * time.Second)
	s = dial()
	if used := cpu(s) - before; used > 500 {
		t.Errorf("the guest used %d ms of processor time in 3 s without a host", used)
	} else {
		t.Logf("%d ms of processor time in 3 s without a host, and for the reconnect", used)
	}

	began = time.Now()
	for i := range 20 {
		// Leave half a frame in the pipe, and answers nobody reads.
		s.Send([]byte("unread"))
		var frame [MaxFrame]byte
		n := putFrame(frame[:], typeMessage, s.nonce, make([]byte, MaxMessage))
		s.conn().Write(frame[:n/2+i])
		s.conn().Close()
		s = dial()
		exchange(t, s, []byte(fmt.Sprint("again ", i)))
	}
	t.Logf("reconnect in %v", time.Since(began)/20)
	s.Close()
}

// image is an ext4 file system with this test binary as /init.
func image(t *testing.T, dir string) string {
	t.Helper()
	binary, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	file, err := elf.NewFile(bytes.NewReader(binary))
	if err != nil {
		t.Fatal(err)
	}
	if file.Section(".interp") != nil {
		t.Skip("the test binary is linked dynamically; set CGO_ENABLED=0")
	}
	root := filepath.Join(dir, "root")
	for _, name := range []string{"dev", "sys"} {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "init"), binary, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "root.img")
	if out, err := exec.Command("mkfs.ext4", "-q", "-d", root, path, "32M").CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	return path
}
